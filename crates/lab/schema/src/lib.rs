//! Schemas of the Kubernetes API as data: OpenAPI documents, protobuf bodies, structural schemas.
