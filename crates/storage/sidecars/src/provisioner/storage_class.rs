//! The parameters of a `StorageClass`: which are for the provisioner, and what they mean.
//!
//! Keys under `csi.storage.k8s.io/` choose the filesystem and name secrets by templates; everything else goes to the driver
//! as it stands. The texts of the errors are those that users of the original know from their claims' events.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::SecretReference;

use super::names;

/// What a secret is for. Each purpose has its own pair of class parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretPurpose {
    /// `CreateVolume` and `DeleteVolume`.
    Provisioner,
    /// `ControllerPublishVolume` and its inverse.
    ControllerPublish,
    /// `NodeStageVolume`.
    NodeStage,
    /// `NodePublishVolume`.
    NodePublish,
    /// `ControllerExpandVolume`.
    ControllerExpand,
    /// `NodeExpandVolume`.
    NodeExpand,
    /// `ControllerModifyVolume`.
    ControllerModify,
}

impl SecretPurpose {
    const ALL: [Self; 7] = [
        Self::Provisioner,
        Self::ControllerPublish,
        Self::NodeStage,
        Self::NodePublish,
        Self::ControllerExpand,
        Self::NodeExpand,
        Self::ControllerModify,
    ];

    /// The purpose's word in parameter keys.
    fn key(self) -> &'static str {
        match self {
            Self::Provisioner => "provisioner",
            Self::ControllerPublish => "controller-publish",
            Self::NodeStage => "node-stage",
            Self::NodePublish => "node-publish",
            Self::ControllerExpand => "controller-expand",
            Self::NodeExpand => "node-expand",
            Self::ControllerModify => "controller-modify",
        }
    }

    /// The purpose's word in error texts.
    fn title(self) -> &'static str {
        match self {
            Self::Provisioner => "Provisioner",
            Self::ControllerPublish => "ControllerPublish",
            Self::NodeStage => "NodeStage",
            Self::NodePublish => "NodePublish",
            Self::ControllerExpand => "ControllerExpand",
            Self::NodeExpand => "NodeExpand",
            Self::ControllerModify => "ControllerModify",
        }
    }

    /// The keys of the first CSI releases; later purposes never had any.
    fn legacy_prefix(self) -> Option<&'static str> {
        match self {
            Self::Provisioner => Some("csiProvisionerSecret"),
            Self::ControllerPublish => Some("csiControllerPublishSecret"),
            Self::NodeStage => Some("csiNodeStageSecret"),
            Self::NodePublish => Some("csiNodePublishSecret"),
            Self::ControllerExpand | Self::NodeExpand | Self::ControllerModify => None,
        }
    }
}

/// A class whose parameters cannot be used for a claim.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// A key in the reserved namespace that means nothing.
    #[error(
        "failed to strip CSI Parameters of prefixed keys: found unknown parameter key {0:?} with reserved namespace csi.storage.k8s.io/"
    )]
    UnknownReserved(String),
    /// The filesystem is given twice.
    #[error("fstype specified in parameters with both \"fstype\" and \"csi.storage.k8s.io/fstype\" keys")]
    FsTypeTwice,
    /// A secret is given by a legacy key and by its successor.
    #[error("{0} secrets specified in parameters with both \"csi\" and \"csi.storage.k8s.io/\" keys")]
    SecretTwice(&'static str),
    /// Only one of name and namespace is given.
    #[error("either name and namespace for {0} secrets specified, Both must be specified")]
    SecretHalf(&'static str),
    /// Name or namespace is the empty text.
    #[error("{0} secrets specified in parameters but value of either namespace or name is empty")]
    SecretEmpty(&'static str),
    /// A template uses tokens that do not exist or are not allowed there.
    #[error("error resolving value {template:?}: invalid tokens: {tokens:?}")]
    UnresolvedTokens {
        /// The template as the class has it.
        template: String,
        /// The offending tokens, sorted.
        tokens: Vec<String>,
    },
    /// The resolved value cannot name an object.
    #[error("{template:?} resolved to {value:?} which is not a valid {what} name")]
    InvalidName {
        /// The template as the class has it.
        template: String,
        /// What it resolved to.
        value: String,
        /// `secret` or `namespace`.
        what: &'static str,
    },
}

/// The claim's side of a secret template. Name and annotations are in the hands of the claim's author, the namespace is not.
#[derive(Debug, Clone, Copy)]
pub struct TemplateClaim<'a> {
    /// `metadata.namespace`.
    pub namespace: &'a str,
    /// `metadata.name`.
    pub name: &'a str,
    /// `metadata.annotations`.
    pub annotations: &'a BTreeMap<String, String>,
}

/// The filesystem type for mounted volumes: the class's, else `default`. Empty leaves the choice to the driver.
pub fn fs_type(parameters: &BTreeMap<String, String>, default: &str) -> Result<String, ParameterError> {
    let mut found = parameters
        .iter()
        .filter(|(key, _)| *key == names::FS_TYPE || key.eq_ignore_ascii_case("fstype"))
        .map(|(_, value)| value);
    let first = found.next();
    if found.next().is_some() {
        return Err(ParameterError::FsTypeTwice);
    }
    Ok(match first {
        Some(value) if !value.is_empty() => value.clone(),
        _ => default.to_owned(),
    })
}

/// What the driver gets: all parameters but those in the reserved namespace. The legacy keys (`fstype`, `csi…SecretName`) are
/// handed on, as drivers of that age expect.
pub fn driver_parameters(parameters: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ParameterError> {
    let mut kept = BTreeMap::new();
    for (key, value) in parameters {
        match key.strip_prefix(names::PARAMETER_PREFIX) {
            None => {
                kept.insert(key.clone(), value.clone());
            }
            Some(rest) if is_known(rest) => {}
            Some(_) => return Err(ParameterError::UnknownReserved(key.clone())),
        }
    }
    Ok(kept)
}

/// Whether a key, already without the reserved prefix, is one of ours.
fn is_known(rest: &str) -> bool {
    let secret = |rest: &str| {
        rest == "secret" || SecretPurpose::ALL.iter().any(|purpose| rest.strip_suffix("-secret") == Some(purpose.key()))
    };
    rest == "fstype"
        || rest.strip_suffix("-name").is_some_and(secret)
        || rest.strip_suffix("-namespace").is_some_and(secret)
}

/// The secret for one purpose, or none if the class names none. Nothing is looked up: the secret may not exist.
///
/// The pair for the purpose wins over the catch-all pair `csi.storage.k8s.io/secret-{name,namespace}`. Namespaces may use
/// `${pv.name}` and `${pvc.namespace}`; names also `${pvc.name}` and `${pvc.annotations['key']}`.
pub fn secret_reference(
    purpose: SecretPurpose,
    parameters: &BTreeMap<String, String>,
    volume_name: &str,
    claim: Option<TemplateClaim<'_>>,
) -> Result<Option<SecretReference>, ParameterError> {
    let own = template_pair(
        purpose.title(),
        &format!("{}{}-secret", names::PARAMETER_PREFIX, purpose.key()),
        purpose.legacy_prefix(),
        parameters,
    )?;
    let pair = match own {
        Some(pair) => Some(pair),
        None => template_pair("default", &format!("{}secret", names::PARAMETER_PREFIX), None, parameters)?,
    };
    let Some((name_template, namespace_template)) = pair else {
        return Ok(None);
    };

    let namespace = resolve(namespace_template, |token| match token {
        "pv.name" => Some(volume_name),
        "pvc.namespace" => claim.map(|claim| claim.namespace),
        _ => None,
    })?;
    if !is_dns_label(&namespace) {
        return Err(invalid_name(namespace_template, namespace, "namespace"));
    }
    let name = resolve(name_template, |token| match token {
        "pv.name" => Some(volume_name),
        "pvc.namespace" => claim.map(|claim| claim.namespace),
        "pvc.name" => claim.map(|claim| claim.name),
        _ => {
            let key = token.strip_prefix("pvc.annotations['")?.strip_suffix("']")?;
            claim?.annotations.get(key).map(String::as_str)
        }
    })?;
    if !is_dns_subdomain(&name) {
        return Err(invalid_name(name_template, name, "secret"));
    }
    Ok(Some(SecretReference { name: Some(name), namespace: Some(namespace) }))
}

fn invalid_name(template: &str, value: String, what: &'static str) -> ParameterError {
    ParameterError::InvalidName { template: template.to_owned(), value, what }
}

/// Finds the (name, namespace) templates under a key stem or its legacy form.
fn template_pair<'a>(
    title: &'static str,
    stem: &str,
    legacy: Option<&str>,
    parameters: &'a BTreeMap<String, String>,
) -> Result<Option<(&'a str, &'a str)>, ParameterError> {
    let pick = |suffix: &str, legacy_suffix: &str| {
        let current = parameters.get(&format!("{stem}{suffix}"));
        let old = legacy.and_then(|prefix| parameters.get(&format!("{prefix}{legacy_suffix}")));
        match (current, old) {
            (Some(_), Some(_)) => Err(ParameterError::SecretTwice(title)),
            (current, old) => Ok(current.or(old).map(String::as_str)),
        }
    };
    match (pick("-name", "Name")?, pick("-namespace", "Namespace")?) {
        (None, None) => Ok(None),
        (Some(""), Some(_)) | (Some(_), Some("")) => Err(ParameterError::SecretEmpty(title)),
        (Some(name), Some(namespace)) => Ok(Some((name, namespace))),
        _ => Err(ParameterError::SecretHalf(title)),
    }
}

/// Replaces each `${token}`. Unknown tokens, and a `$` that begins no token, are errors: a secret's name never holds one.
fn resolve<'a>(template: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> Result<String, ParameterError> {
    let mut resolved = String::with_capacity(template.len());
    let mut unknown = BTreeSet::new();
    let mut rest = template;
    while let Some(at) = rest.find('$') {
        resolved.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let token = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        if let Some((token, tail)) = token {
            match lookup(token) {
                Some(value) => resolved.push_str(value),
                None => {
                    unknown.insert(token.to_owned());
                }
            }
            rest = tail;
        } else {
            unknown.insert(rest[at..].to_owned());
            rest = "";
        }
    }
    resolved.push_str(rest);
    if unknown.is_empty() {
        Ok(resolved)
    } else {
        Err(ParameterError::UnresolvedTokens { template: template.to_owned(), tokens: unknown.into_iter().collect() })
    }
}

/// RFC 1123 label: at most 63 of `a-z0-9-`, alphanumeric at both ends.
fn is_dns_label(text: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
}

/// RFC 1123 subdomain as Kubernetes checks it: dot-separated parts, at most 253 bytes together.
fn is_dns_subdomain(text: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.len() <= 253
        && text.split('.').all(|part| {
            let bytes = part.as_bytes();
            bytes.first().is_some_and(alphanumeric)
                && bytes.last().is_some_and(alphanumeric)
                && bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn secret(parameters: &[(&str, &str)], purpose: SecretPurpose) -> Result<Option<(String, String)>, ParameterError> {
        let annotations = map(&[("team/secret", "blue")]);
        let claim = TemplateClaim { namespace: "shop", name: "data-db-0", annotations: &annotations };
        secret_reference(purpose, &map(parameters), "pvc-1", Some(claim))
            .map(|found| found.map(|r| (r.name.unwrap_or_default(), r.namespace.unwrap_or_default())))
    }

    #[test]
    fn filesystem_by_either_key_or_the_default() {
        assert_eq!(fs_type(&map(&[]), "").as_deref(), Ok(""));
        assert_eq!(fs_type(&map(&[]), "ext4").as_deref(), Ok("ext4"));
        assert_eq!(fs_type(&map(&[("csi.storage.k8s.io/fstype", "xfs")]), "ext4").as_deref(), Ok("xfs"));
        assert_eq!(fs_type(&map(&[("FsType", "xfs")]), "ext4").as_deref(), Ok("xfs"));
        assert_eq!(fs_type(&map(&[("fstype", "")]), "ext4").as_deref(), Ok("ext4"));
        assert_eq!(
            fs_type(&map(&[("fstype", "xfs"), ("csi.storage.k8s.io/fstype", "xfs")]), ""),
            Err(ParameterError::FsTypeTwice)
        );
    }

    #[test]
    fn reserved_keys_never_reach_the_driver() {
        let mut parameters = map(&[("kind", "fast"), ("fstype", "xfs"), ("csiProvisionerSecretName", "s")]);
        let for_driver = parameters.clone();
        for key in
            ["fstype", "secret-name", "secret-namespace", "node-expand-secret-name", "provisioner-secret-namespace"]
        {
            parameters.insert(format!("csi.storage.k8s.io/{key}"), "x".to_owned());
        }
        assert_eq!(driver_parameters(&parameters), Ok(for_driver));
        for key in ["", "fsType", "pv/name", "node-secret-name", "secret", "-secret-name"] {
            let key = format!("csi.storage.k8s.io/{key}");
            assert_eq!(driver_parameters(&map(&[(&key, "x")])), Err(ParameterError::UnknownReserved(key.clone())));
        }
    }

    #[test]
    fn secrets_by_template() {
        assert_eq!(secret(&[("kind", "fast")], SecretPurpose::NodeStage), Ok(None));
        assert_eq!(
            secret(
                &[
                    (
                        "csi.storage.k8s.io/node-stage-secret-name",
                        "${pvc.name}.${pv.name}.${pvc.annotations['team/secret']}"
                    ),
                    ("csi.storage.k8s.io/node-stage-secret-namespace", "${pvc.namespace}"),
                    ("csi.storage.k8s.io/secret-name", "other"),
                    ("csi.storage.k8s.io/secret-namespace", "other"),
                ],
                SecretPurpose::NodeStage
            ),
            Ok(Some(("data-db-0.pvc-1.blue".to_owned(), "shop".to_owned())))
        );
        assert_eq!(
            secret(
                &[("csi.storage.k8s.io/secret-name", "all"), ("csi.storage.k8s.io/secret-namespace", "sys")],
                SecretPurpose::ControllerModify
            ),
            Ok(Some(("all".to_owned(), "sys".to_owned())))
        );
        assert_eq!(
            secret(
                &[("csiNodePublishSecretName", "old"), ("csiNodePublishSecretNamespace", "sys")],
                SecretPurpose::NodePublish
            ),
            Ok(Some(("old".to_owned(), "sys".to_owned())))
        );
    }

    #[test]
    fn secrets_that_cannot_be_resolved() {
        let name = "csi.storage.k8s.io/provisioner-secret-name";
        let namespace = "csi.storage.k8s.io/provisioner-secret-namespace";
        let p = SecretPurpose::Provisioner;
        assert_eq!(secret(&[(name, "a")], p), Err(ParameterError::SecretHalf("Provisioner")));
        assert_eq!(secret(&[(name, ""), (namespace, "b")], p), Err(ParameterError::SecretEmpty("Provisioner")));
        assert_eq!(
            secret(&[(name, "a"), (namespace, "b"), ("csiProvisionerSecretName", "c")], p),
            Err(ParameterError::SecretTwice("Provisioner"))
        );
        // The claim's author must not choose the namespace.
        for template in ["${pvc.name}", "${pvc.annotations['team/secret']}", "$", "${", "$pv.name", "${}"] {
            let failed = secret(&[(name, "a"), (namespace, template)], p);
            assert!(matches!(failed, Err(ParameterError::UnresolvedTokens { .. })), "{template}: {failed:?}");
        }
        assert!(matches!(
            secret(&[(name, "${pvc.annotations['none']}"), (namespace, "b")], p),
            Err(ParameterError::UnresolvedTokens { .. })
        ));
        for (n, ns) in [("A", "b"), ("a", "b.c"), ("a..b", "b"), ("-a", "b"), ("a/b", "b")] {
            assert!(
                matches!(secret(&[(name, n), (namespace, ns)], p), Err(ParameterError::InvalidName { .. })),
                "{n} {ns}"
            );
        }
    }

    proptest! {
        #[test]
        fn resolved_references_are_always_valid_names(name in ".{0,30}", namespace in "[a-z${}.pvc-]{0,30}") {
            let found = secret(
                &[("csi.storage.k8s.io/secret-name", &name), ("csi.storage.k8s.io/secret-namespace", &namespace)],
                SecretPurpose::NodeStage,
            );
            if let Ok(Some((name, namespace))) = found {
                prop_assert!(is_dns_subdomain(&name) && is_dns_label(&namespace));
            }
        }
    }
}
