//! The Kubernetes side of CSI: the controllers that drive a plugin from API objects.
