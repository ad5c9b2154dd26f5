//! From the driver's answer to a `PersistentVolume` object.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use outrigger_csi::proto;

use super::names;
use super::plan::Plan;
use super::topology;
use crate::quantity;

/// An answer that cannot become a volume. All of these leave the outcome uncertain: the call is replayed after a clean-up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// The message has no volume, or the volume has no id, so there is nothing that could be deleted.
    #[error("the driver's CreateVolume answer has no volume id")]
    NoId,
    /// The volume is smaller than requested.
    #[error("created volume capacity {actual} less than requested capacity {required}")]
    TooSmall {
        /// Bytes that the driver reports.
        actual: i64,
        /// Bytes that were asked for.
        required: i64,
    },
    /// The driver ignored the content source: the volume is empty.
    #[error("volume content source missing")]
    NoContentSource,
}

/// The volume object for an answer. `identity` names the provisioning process.
pub fn complete(plan: &Plan, answer: &proto::Volume, identity: &str) -> Result<PersistentVolume, AnswerError> {
    if answer.volume_id.is_empty() {
        return Err(AnswerError::NoId);
    }
    // 0 means that the driver does not know the size (a share without quota).
    let capacity = match answer.capacity_bytes {
        0 => plan.required_bytes,
        actual if actual < plan.required_bytes => {
            return Err(AnswerError::TooSmall { actual, required: plan.required_bytes });
        }
        actual => actual,
    };
    if plan.source.is_some() && answer.content_source.is_none() {
        return Err(AnswerError::NoContentSource);
    }
    let mut volume = plan.template.clone();
    let spec = volume.spec.get_or_insert_default();
    spec.capacity = Some([("storage".to_owned(), Quantity(quantity::from_bytes(capacity)))].into());
    // A requirement was sent exactly if the driver has topology, or the settings switched it off for immediate binding.
    spec.node_affinity = topology::node_affinity(&answer.accessible_topology);
    let source = spec.csi.get_or_insert_default();
    source.volume_handle.clone_from(&answer.volume_id);
    let mut attributes: BTreeMap<_, _> =
        answer.volume_context.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    attributes.entry(names::PROVISIONER_IDENTITY.to_owned()).or_insert_with(|| identity.to_owned());
    source.volume_attributes = Some(attributes);
    Ok(volume)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provisioner::plan::{Access, ContentSource};

    fn plan(source: Option<ContentSource>) -> Plan {
        Plan {
            name: "pvc-1".to_owned(),
            required_bytes: 1000,
            access_modes: vec![1],
            access: Access::Block,
            parameters: BTreeMap::new(),
            mutable_parameters: BTreeMap::new(),
            source,
            topology: None,
            secret: None,
            selected_node: None,
            template: PersistentVolume::default(),
        }
    }

    fn answer(capacity_bytes: i64) -> proto::Volume {
        proto::Volume { volume_id: "id".to_owned(), capacity_bytes, ..proto::Volume::default() }
    }

    #[test]
    fn the_capacity_is_the_drivers_unless_it_has_none() {
        for (actual, expected) in [(0, "1000"), (1000, "1000"), (2048, "2Ki")] {
            let volume = complete(&plan(None), &answer(actual), "me").unwrap();
            assert_eq!(volume.spec.unwrap().capacity.unwrap()["storage"].0, expected);
        }
        let short = complete(&plan(None), &answer(999), "me");
        assert_eq!(short, Err(AnswerError::TooSmall { actual: 999, required: 1000 }));
    }

    #[test]
    fn answers_without_what_was_asked_for() {
        assert_eq!(complete(&plan(None), &proto::Volume::default(), "me"), Err(AnswerError::NoId));
        let clone = plan(Some(ContentSource::Volume("source".to_owned())));
        assert_eq!(complete(&clone, &answer(0), "me"), Err(AnswerError::NoContentSource));
        let with_source = proto::Volume { content_source: clone.request().volume_content_source, ..answer(0) };
        assert!(complete(&clone, &with_source, "me").is_ok());
    }

    #[test]
    fn the_drivers_attributes_win() {
        let mut answer = answer(0);
        answer.volume_context.insert("a".to_owned(), "b".to_owned());
        let volume = complete(&plan(None), &answer, "me").unwrap();
        let attributes = volume.spec.unwrap().csi.unwrap().volume_attributes.unwrap();
        assert_eq!(attributes["a"], "b");
        assert_eq!(attributes[names::PROVISIONER_IDENTITY], "me");
        answer.volume_context.insert(names::PROVISIONER_IDENTITY.to_owned(), "theirs".to_owned());
        let volume = complete(&plan(None), &answer, "me").unwrap();
        let attributes = volume.spec.unwrap().csi.unwrap().volume_attributes.unwrap();
        assert_eq!(attributes[names::PROVISIONER_IDENTITY], "theirs");
    }
}
