//! In which form the client wants its answer, and in which it sent its body.

use http::{HeaderMap, header};
use serde_json::Value;

use crate::status::ApiError;

/// JSON or YAML.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Encoding {
    Json,
    Yaml,
}

/// What of an object the client wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Shape {
    /// The whole object.
    Whole,
    /// Columns and rows for people.
    Table { v1: bool },
    /// Only the metadata; a list of such if the answer is a list.
    Metadata { v1: bool },
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    pub(crate) encoding: Encoding,
    pub(crate) shape: Shape,
}

impl Form {
    pub(crate) const JSON: Self = Self { encoding: Encoding::Json, shape: Shape::Whole };

    /// The Content-Type of the answer.
    pub(crate) fn content_type(self) -> &'static str {
        match (self.encoding, self.shape) {
            (Encoding::Yaml, _) => "application/yaml",
            (Encoding::Json, _) => "application/json",
        }
    }
}

/// One alternative of an Accept header.
#[derive(Debug)]
pub(crate) struct Clause<'a> {
    pub(crate) media: &'a str,
    params: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl Clause<'_> {
    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }
}

/// The alternatives of an Accept header, best first; empty if there is no (readable) header.
pub(crate) fn clauses(accept: &str) -> Vec<Clause<'_>> {
    let mut clauses: Vec<Clause<'_>> = accept
        .split(',')
        .map(str::trim)
        .filter(|clause| !clause.is_empty())
        .map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let params: Vec<(&str, &str)> = parts
                .filter_map(|part| part.split_once('='))
                .map(|(k, v)| (k.trim(), v.trim().trim_matches('"')))
                .collect();
            let quality = params.iter().find(|(key, _)| *key == "q").and_then(|(_, q)| q.parse().ok()).unwrap_or(1.0);
            Clause { media, params, quality }
        })
        .collect();
    // Stable: equal quality keeps the client's order.
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    clauses
}

/// The Accept header's text.
pub(crate) fn accept(headers: &HeaderMap) -> String {
    let values: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    values.join(",")
}

/// What is named in the 406 text.
pub(crate) const OFFERED: [&str; 2] = ["application/json", "application/yaml"];

/// Picks the first alternative that can be served. Protobuf is not among them: every client that asks for it
/// names JSON as well.
pub(crate) fn negotiate(headers: &HeaderMap, watch: bool) -> Result<Form, ApiError> {
    let accept = accept(headers);
    if accept.is_empty() {
        return Ok(Form::JSON);
    }
    for clause in clauses(&accept) {
        let encoding = match clause.media {
            "application/json" | "application/*" | "*/*" => Encoding::Json,
            "application/yaml" | "application/x-yaml" if !watch => Encoding::Yaml,
            _ => continue,
        };
        let shape = match clause.param("as") {
            None => Shape::Whole,
            Some(name) => {
                if clause.param("g").is_some_and(|group| group != "meta.k8s.io") {
                    continue;
                }
                let v1 = match clause.param("v") {
                    Some("v1") => true,
                    Some("v1beta1") => false,
                    _ => continue,
                };
                match name {
                    "Table" => Shape::Table { v1 },
                    "PartialObjectMetadata" | "PartialObjectMetadataList" => Shape::Metadata { v1 },
                    _ => continue,
                }
            }
        };
        return Ok(Form { encoding, shape });
    }
    Err(ApiError::not_acceptable(&OFFERED))
}

/// Formats of request bodies.
pub(crate) const BODIES: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// Decodes a body of a POST, PUT or DELETE by its Content-Type; JSON if there is none. The second part is the list of
/// fields that stand twice in one JSON object (the last one counts).
pub(crate) fn decode(headers: &HeaderMap, body: &[u8]) -> Result<Value, ApiError> {
    let content_type = content_type(headers)?;
    match content_type.as_str() {
        "" | "application/json" | "text/json" | "*/*" => decode_json(body),
        "application/yaml" | "application/x-yaml" | "text/yaml" => decode_yaml(body),
        "application/vnd.kubernetes.protobuf" => outrigger_lab_schema::protobuf::decode(body)
            .map_err(|error| ApiError::bad_request(format!("decode the protobuf body: {error}"))),
        other => Err(ApiError::unsupported_media_type(other, &BODIES)),
    }
}

/// The Content-Type without parameters, in lower case; empty if absent.
pub(crate) fn content_type(headers: &HeaderMap) -> Result<String, ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(String::new()) };
    let text = value.to_str().map_err(|_| ApiError::unsupported_media_type("unreadable Content-Type", &BODIES))?;
    Ok(text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

pub(crate) fn decode_json(body: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("the JSON body cannot be decoded: {error}")))
}

pub(crate) fn decode_yaml(body: &[u8]) -> Result<Value, ApiError> {
    let text = std::str::from_utf8(body).map_err(|_| ApiError::bad_request("the YAML body is not UTF-8"))?;
    serde_saphyr::from_str(text)
        .map_err(|error| ApiError::bad_request(format!("the YAML body cannot be decoded: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn form(accept: &'static str) -> Result<Form, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        negotiate(&headers, false)
    }

    #[test]
    fn the_first_servable_alternative_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(form(table).expect("table").shape, Shape::Table { v1: true });
        assert_eq!(form("application/vnd.kubernetes.protobuf,application/json").expect("json"), Form::JSON);
        assert_eq!(form("application/vnd.kubernetes.protobuf, */*").expect("json"), Form::JSON);
        assert_eq!(form("application/json;as=Foo;v=v1;g=meta.k8s.io").expect_err("unknown").code, 406);
        assert_eq!(form("application/json;as=Foo;v=v1;g=meta.k8s.io,application/json").expect("json"), Form::JSON);
        assert_eq!(form("application/vnd.kubernetes.protobuf").expect_err("protobuf").code, 406);
        assert_eq!(form("application/yaml").expect("yaml").encoding, Encoding::Yaml);
        assert_eq!(form("application/yaml;q=0.5, application/json").expect("json").encoding, Encoding::Json);
    }
}
