//! What the driver knows of a volume. These types are the content of the state file; see [`crate::journal`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// The id of a volume: a UUID in its usual text form.
///
/// Ids arrive from outside and become file names. Only text that is exactly what this driver would have written is an
/// id, hence no id can leave the state directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct VolumeId(Uuid);

impl VolumeId {
    pub(crate) fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl FromStr for VolumeId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let id = Uuid::try_parse(text).map_err(|_| ())?;
        let mut buffer = Uuid::encode_buffer();
        if &*id.hyphenated().encode_lower(&mut buffer) == text { Ok(Self(id)) } else { Err(()) }
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for VolumeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VolumeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|()| serde::de::Error::custom(format_args!("{text:?} is no volume id")))
    }
}

/// How a workload sees a volume. Chosen by the capability in CreateVolume and fixed from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Access {
    /// As a directory.
    Mount,
    /// As a block device.
    Block,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mount => "mount",
            Self::Block => "block",
        })
    }
}

/// What a volume is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type", deny_unknown_fields)]
pub(crate) enum Backing {
    /// A directory. Its size is a promise only.
    Directory,
    /// A sparse file that becomes a block device.
    Image,
    /// A sparse file that holds a file system, which enforces the size.
    #[serde(rename_all = "camelCase")]
    Filesystem {
        /// `ext4`, `xfs`…
        fs_type: String,
        /// Whether mkfs has run to its end. Until then there is nothing in the image that could be lost.
        formatted: bool,
    },
}

/// What a caller asked for when it attached, staged or published a volume; compared when it asks again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Capability {
    pub(crate) access: Access,
    /// Number of the access mode in csi.proto.
    pub(crate) mode: i32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) fs_type: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) mount_flags: Vec<String>,
}

/// A volume that ControllerPublishVolume attached to the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Attached {
    pub(crate) capability: Capability,
    pub(crate) read_only: bool,
}

/// A volume that NodeStageVolume staged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Staged {
    pub(crate) path: String,
    pub(crate) capability: Capability,
    /// The kernel's boot id at that time: mounts and loop devices do not outlive a boot.
    pub(crate) boot: String,
}

/// One target of NodePublishVolume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Published {
    pub(crate) capability: Capability,
    pub(crate) read_only: bool,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Volume {
    pub(crate) id: VolumeId,
    pub(crate) name: String,
    /// Bytes.
    pub(crate) capacity: u64,
    pub(crate) access: Access,
    pub(crate) backing: Backing,
    /// The capacity pool, if there are pools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) parameters: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) attached: Option<Attached>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) staged: Option<Staged>,
    /// By target path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) published: BTreeMap<String, Published>,
}

impl Volume {
    /// Why the volume must not be deleted, if so.
    pub(crate) fn in_use(&self) -> Option<String> {
        if let Some(target) = self.published.keys().next() {
            Some(format!("it is published at {target}: call NodeUnpublishVolume first"))
        } else if let Some(staged) = &self.staged {
            Some(format!("it is staged at {}: call NodeUnstageVolume first", staged.path))
        } else if self.attached.is_some() {
            Some("it is attached to this node: call ControllerUnpublishVolume first".to_owned())
        } else {
            None
        }
    }

    /// Whether `path` is where the node has the volume.
    pub(crate) fn is_at(&self, path: &str) -> bool {
        let same = |known: &str| Path::new(known) == Path::new(path);
        self.staged.as_ref().is_some_and(|staged| same(&staged.path))
            || self.published.keys().any(|target| same(target))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A directory volume that nobody uses.
    pub(crate) fn plain(name: &str) -> Volume {
        Volume {
            id: VolumeId::random(),
            name: name.to_owned(),
            capacity: 1 << 20,
            access: Access::Mount,
            backing: Backing::Directory,
            kind: None,
            parameters: BTreeMap::new(),
            attached: None,
            staged: None,
            published: BTreeMap::new(),
        }
    }

    #[test]
    fn only_canonical_ids_are_ids() {
        let id = VolumeId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in [
            "",
            "..",
            "../../etc/passwd",
            "non-existing",
            "550E8400-E29B-41D4-A716-446655440000",
            "550e8400e29b41d4a716446655440000",
            "{550e8400-e29b-41d4-a716-446655440000}",
            "urn:uuid:550e8400-e29b-41d4-a716-446655440000",
            "550e8400-e29b-41d4-a716-446655440000/",
        ] {
            assert!(text.parse::<VolumeId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_record_survives_the_trip_through_json() {
        let mut volume = plain("pvc-1");
        volume.backing = Backing::Filesystem { fs_type: "ext4".to_owned(), formatted: true };
        volume.published.insert(
            "/target".to_owned(),
            Published {
                capability: Capability {
                    access: Access::Mount,
                    mode: 1,
                    fs_type: String::new(),
                    mount_flags: vec!["noexec".to_owned()],
                },
                read_only: true,
            },
        );
        let json = serde_json::to_string(&volume).unwrap();
        assert_eq!(serde_json::from_str::<Volume>(&json).unwrap(), volume);
    }

    #[test]
    fn a_record_with_unknown_fields_is_refused() {
        let json = serde_json::to_string(&plain("a")).unwrap();
        let json = json.replacen('{', "{\"encrypted\":true,", 1);
        assert!(serde_json::from_str::<Volume>(&json).is_err());
    }
}
