//! What to make of a CreateVolume request: pure decisions, no effects.

use std::collections::{BTreeMap, HashMap};

use outrigger_csi::{Error, proto};
use proto::volume_capability::AccessType;

use crate::kernel::mount_options;
use crate::quantity::Bytes;
use crate::volume::{Access, Backing, Capability, Volume};

/// Size of a volume for which the caller named none.
const DEFAULT_SIZE: u64 = 1 << 30;
/// Image files are multiples of this, so that every block size divides them.
pub(crate) const UNIT: u64 = 1 << 20;
/// The smallest ext4 with a journal that is of any use.
const MIN_EXT: u64 = 16 << 20;
/// The smallest that `mkfs.xfs` makes.
const MIN_XFS: u64 = 300 << 20;
/// Key of the only topology segment.
pub(crate) const TOPOLOGY_KEY: &str = "topology.hostpath.csi/node";
/// File systems that `backing: file` offers.
const FILESYSTEMS: [&str; 4] = ["ext2", "ext3", "ext4", "xfs"];

/// A volume to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) capacity: u64,
    pub(crate) access: Access,
    pub(crate) backing: Backing,
    /// The pool that the caller named.
    pub(crate) kind: Option<String>,
    pub(crate) parameters: BTreeMap<String, String>,
}

/// Reads a capability, and refuses what no volume of this driver can do.
pub(crate) fn capability(capability: Option<&proto::VolumeCapability>) -> Result<Capability, Error> {
    let missing = || Error::invalid_argument("volume_capability is missing or has no access type");
    let capability = capability.ok_or_else(missing)?;
    let mode = capability.access_mode.as_ref().map_or(0, |mode| mode.mode);
    match capability.access_type.as_ref().ok_or_else(missing)? {
        AccessType::Block(_) => {
            Ok(Capability { access: Access::Block, mode, fs_type: String::new(), mount_flags: Vec::new() })
        }
        AccessType::Mount(mount) => {
            if !mount.volume_mount_group.is_empty() {
                return Err(Error::invalid_argument(
                    "volume_mount_group is not supported: the plugin does not advertise it",
                ));
            }
            Ok(Capability {
                access: Access::Mount,
                mode,
                fs_type: mount.fs_type.clone(),
                mount_flags: mount.mount_flags.clone(),
            })
        }
    }
}

/// The one access type of all these capabilities, and the file system they name.
fn access(capabilities: &[proto::VolumeCapability]) -> Result<(Access, String), Error> {
    let mut found: Option<(Access, String)> = None;
    for one in capabilities {
        let Capability { access, fs_type, .. } = capability(Some(one))?;
        match &mut found {
            None => found = Some((access, fs_type)),
            Some((known, _)) if *known != access => {
                return Err(Error::invalid_argument(
                    "volume_capabilities ask for block and mount access: a volume has one of them",
                ));
            }
            Some((_, known)) if known.is_empty() => *known = fs_type,
            Some((_, known)) if !fs_type.is_empty() && *known != fs_type => {
                return Err(Error::invalid_argument(format!(
                    "volume_capabilities ask for two file systems, {known} and {fs_type}"
                )));
            }
            Some(_) => {}
        }
    }
    found.ok_or_else(|| Error::invalid_argument("volume_capabilities is empty"))
}

/// Decides what volume a request asks for.
pub(crate) fn plan(request: &proto::CreateVolumeRequest, max_volume_size: u64) -> Result<Plan, Error> {
    if request.volume_content_source.is_some() {
        return Err(Error::invalid_argument(
            "volume_content_source is not supported: this driver has neither snapshots nor clones yet",
        ));
    }
    if !request.mutable_parameters.is_empty() {
        return Err(Error::invalid_argument(
            "mutable_parameters are not supported: the plugin does not advertise MODIFY_VOLUME",
        ));
    }
    let (access, fs_type) = access(&request.volume_capabilities)?;
    let backing = backing(access, fs_type, request.parameters.get("backing").map(String::as_str))?;
    for one in &request.volume_capabilities {
        mount_options(&capability(Some(one))?.mount_flags, matches!(backing, Backing::Filesystem { .. }))?;
    }
    let (unit, min) = match &backing {
        Backing::Directory => (1, 0),
        Backing::Image => (UNIT, UNIT),
        Backing::Filesystem { fs_type, .. } if fs_type == "xfs" => (UNIT, MIN_XFS),
        Backing::Filesystem { .. } => (UNIT, MIN_EXT),
    };
    let capacity = size(request.capacity_range.as_ref(), unit, min, max_volume_size)?;
    let kind = request.parameters.get("kind").filter(|kind| !kind.is_empty()).cloned();
    let parameters = request.parameters.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    Ok(Plan { capacity, access, backing, kind, parameters })
}

fn backing(access: Access, fs_type: String, parameter: Option<&str>) -> Result<Backing, Error> {
    match (access, parameter) {
        (Access::Mount, None | Some("directory")) => Ok(Backing::Directory),
        (Access::Block, None | Some("file")) => Ok(Backing::Image),
        (Access::Mount, Some("file")) => {
            let fs_type = if fs_type.is_empty() { "ext4".to_owned() } else { fs_type };
            if !FILESYSTEMS.contains(&fs_type.as_str()) {
                return Err(Error::invalid_argument(format!(
                    "fs_type {fs_type:?} is not supported with parameter backing: file; choose one of {}",
                    FILESYSTEMS.join(", ")
                )));
            }
            Ok(Backing::Filesystem { fs_type, formatted: false })
        }
        (Access::Block, Some("directory")) => {
            Err(Error::invalid_argument("parameter backing: directory cannot serve a block volume; leave it out"))
        }
        (_, Some(other)) => {
            Err(Error::invalid_argument(format!("parameter backing is {other:?}; it can be \"directory\" or \"file\"")))
        }
    }
}

/// The size for this range, in multiples of `unit`.
fn size(range: Option<&proto::CapacityRange>, unit: u64, min: u64, max: u64) -> Result<u64, Error> {
    let bytes = |value: i64, field: &str| {
        u64::try_from(value)
            .map_err(|_| Error::invalid_argument(format!("capacity_range.{field} is negative: {value}")))
    };
    let required = range.map_or(Ok(0), |range| bytes(range.required_bytes, "required_bytes"))?;
    let limit = range.map_or(Ok(0), |range| bytes(range.limit_bytes, "limit_bytes"))?;
    let limit = if limit == 0 { max } else { limit };
    if required > limit && limit < max {
        return Err(Error::invalid_argument(format!(
            "capacity_range asks for at least {} and at most {}",
            Bytes(required),
            Bytes(limit)
        )));
    }
    if required > max {
        return Err(Error::out_of_range(format!(
            "a volume of {} is larger than --max-volume-size, {}",
            Bytes(required),
            Bytes(max)
        )));
    }
    let ceiling = limit.min(max) / unit * unit;
    let wanted = if required == 0 { DEFAULT_SIZE.min(ceiling) } else { required };
    // Both factors are at most 2^63, so neither step overflows.
    let size = wanted.max(min).div_ceil(unit) * unit;
    if size > ceiling {
        return Err(Error::out_of_range(format!(
            "a volume of this kind has at least {} and is a multiple of {}; the request allows no more than {}",
            Bytes(min.max(unit)),
            Bytes(unit),
            Bytes(limit.min(max))
        )));
    }
    Ok(size)
}

/// Whether `volume` is what the request asks for; if not, why.
pub(crate) fn compatible(volume: &Volume, plan: &Plan, range: Option<&proto::CapacityRange>) -> Result<(), Error> {
    let refuse = |difference: String| {
        Err(Error::already_exists(format!("there is a volume named {:?} already, {difference}", volume.name)))
    };
    if volume.access != plan.access {
        return refuse(format!("for {} access, not {}", volume.access, plan.access));
    }
    let required = range.map_or(0, |range| range.required_bytes.unsigned_abs());
    let limit = range.map_or(0, |range| range.limit_bytes.unsigned_abs());
    if volume.capacity < required {
        return refuse(format!("with {}, less than the required {}", Bytes(volume.capacity), Bytes(required)));
    }
    if limit != 0 && volume.capacity > limit {
        return refuse(format!("with {}, more than the limit of {}", Bytes(volume.capacity), Bytes(limit)));
    }
    if volume.parameters != plan.parameters {
        return refuse(format!("with other parameters: {:?}", volume.parameters));
    }
    match (&volume.backing, &plan.backing) {
        (Backing::Filesystem { fs_type: a, .. }, Backing::Filesystem { fs_type: b, .. }) if a != b => {
            refuse(format!("with the file system {a}, not {b}"))
        }
        _ => Ok(()),
    }
}

/// Why a volume does not do what these capabilities ask for; nothing if it does.
pub(crate) fn unsupported(volume: &Volume, capabilities: &[proto::VolumeCapability]) -> Result<Option<String>, Error> {
    for one in capabilities {
        let asked = capability(Some(one))?;
        if let Err(reason) = serves(volume, &asked) {
            return Ok(Some(reason));
        }
        if let Err(error) = mount_options(&asked.mount_flags, matches!(volume.backing, Backing::Filesystem { .. })) {
            return Ok(Some(error.message().to_owned()));
        }
    }
    Ok(None)
}

/// Whether the volume can be used in this way; if not, why.
pub(crate) fn serves(volume: &Volume, asked: &Capability) -> Result<(), String> {
    if volume.access != asked.access {
        return Err(format!("the volume has {} access, not {}", volume.access, asked.access));
    }
    match &volume.backing {
        Backing::Filesystem { fs_type, .. } if !asked.fs_type.is_empty() && asked.fs_type != *fs_type => {
            Err(format!("the volume's file system is {fs_type}, not {}", asked.fs_type))
        }
        _ => Ok(()),
    }
}

/// The pool for `plan` among `pools`, judged by what is in use; `None` where nothing is counted.
pub(crate) fn pool(
    plan: &Plan,
    pools: &BTreeMap<String, u64>,
    used: impl Fn(&str) -> u64,
) -> Result<Option<String>, Error> {
    match &plan.kind {
        Some(kind) if pools.contains_key(kind) => Ok(Some(kind.clone())),
        Some(kind) if pools.is_empty() => Err(Error::invalid_argument(format!(
            "parameter kind is {kind:?}, but the driver has no capacity pools: start it with --capacity {kind}=SIZE, or leave the \
             parameter out"
        ))),
        Some(kind) => Err(Error::invalid_argument(format!(
            "parameter kind is {kind:?}; the capacity pools are {}",
            pools.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
        ))),
        None if pools.is_empty() => Ok(None),
        None => pools
            .iter()
            .find(|(kind, size)| size.saturating_sub(used(kind)) >= plan.capacity)
            .map(|(kind, _)| Some(kind.clone()))
            .ok_or_else(|| Error::resource_exhausted(format!("no capacity pool has {} left", Bytes(plan.capacity)))),
    }
}

/// Whether volumes of this node satisfy the requirement (its requisite list: any of the topologies will do).
pub(crate) fn reachable(requirement: Option<&proto::TopologyRequirement>, node_id: &str) -> bool {
    requirement.is_none_or(|requirement| {
        requirement.requisite.is_empty() || requirement.requisite.iter().any(|topology| is_here(topology, node_id))
    })
}

/// Whether a topology is, or includes, this node. Keys are compared without case, as the specification says.
pub(crate) fn is_here(topology: &proto::Topology, node_id: &str) -> bool {
    topology.segments.iter().all(|(key, value)| key.eq_ignore_ascii_case(TOPOLOGY_KEY) && value == node_id)
}

/// The topology of this node.
pub(crate) fn here(node_id: &str) -> proto::Topology {
    proto::Topology { segments: HashMap::from([(TOPOLOGY_KEY.to_owned(), node_id.to_owned())]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::volume_capability::{AccessMode, BlockVolume, MountVolume};

    fn block() -> proto::VolumeCapability {
        proto::VolumeCapability {
            access_mode: Some(AccessMode { mode: 1 }),
            access_type: Some(AccessType::Block(BlockVolume {})),
        }
    }

    fn mount(fs_type: &str) -> proto::VolumeCapability {
        proto::VolumeCapability {
            access_mode: Some(AccessMode { mode: 1 }),
            access_type: Some(AccessType::Mount(MountVolume { fs_type: fs_type.to_owned(), ..MountVolume::default() })),
        }
    }

    fn request(
        capabilities: &[proto::VolumeCapability],
        parameters: &[(&str, &str)],
        range: (i64, i64),
    ) -> proto::CreateVolumeRequest {
        proto::CreateVolumeRequest {
            name: "pvc-1".to_owned(),
            volume_capabilities: capabilities.to_vec(),
            parameters: parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            capacity_range: Some(proto::CapacityRange { required_bytes: range.0, limit_bytes: range.1 }),
            ..proto::CreateVolumeRequest::default()
        }
    }

    const MAX: u64 = 1 << 40;

    fn made(plan: Plan) -> Volume {
        Volume {
            capacity: plan.capacity,
            access: plan.access,
            backing: plan.backing,
            parameters: plan.parameters,
            ..crate::volume::tests::plain("pvc-1")
        }
    }

    #[test]
    fn access_type_chooses_the_backing() {
        let backing =
            |capability, parameters| plan(&request(&[capability], parameters, (1 << 30, 0)), MAX).unwrap().backing;
        let filesystem = |fs_type: &str| Backing::Filesystem { fs_type: fs_type.to_owned(), formatted: false };
        assert_eq!(backing(mount("btrfs"), &[]), Backing::Directory);
        assert_eq!(backing(mount(""), &[("backing", "directory")]), Backing::Directory);
        assert_eq!(backing(block(), &[]), Backing::Image);
        assert_eq!(backing(block(), &[("backing", "file")]), Backing::Image);
        assert_eq!(backing(mount(""), &[("backing", "file")]), filesystem("ext4"));
        assert_eq!(backing(mount("xfs"), &[("backing", "file")]), filesystem("xfs"));
    }

    #[test]
    fn mount_flags_that_staging_would_refuse_make_no_volume() {
        let mut flagged = mount("");
        let Some(AccessType::Mount(settings)) = &mut flagged.access_type else { panic!("made above") };
        settings.mount_flags = vec!["noatime".to_owned(), "commit=5".to_owned()];
        let ask = |parameters| plan(&request(std::slice::from_ref(&flagged), parameters, (1 << 30, 0)), MAX);
        let error = ask(&[]).unwrap_err();
        assert!(error.code() as i32 == 3 && error.to_string().contains("commit=5"), "{error}");
        ask(&[("backing", "file")]).unwrap();
        let plain = made(plan(&request(&[mount("")], &[], (1 << 30, 0)), MAX).unwrap());
        assert!(unsupported(&plain, &[flagged.clone()]).unwrap().unwrap().contains("commit=5"));
        assert_eq!(unsupported(&plain, &[mount("")]).unwrap(), None);
    }

    #[test]
    fn requests_that_make_no_sense() {
        for (capabilities, parameters, range) in [
            (&[][..], &[][..], (1, 0)),
            (&[mount(""), block()], &[], (1, 0)),
            (&[mount("ext4"), mount("xfs")], &[("backing", "file")], (1 << 30, 0)),
            (&[mount("ntfs")], &[("backing", "file")], (1 << 30, 0)),
            (&[mount("")], &[("backing", "tape")], (1, 0)),
            (&[block()], &[("backing", "directory")], (1, 0)),
            (&[block()], &[], (-1, 0)),
            (&[block()], &[], (0, -1)),
            (&[block()], &[], (10, 5)),
        ] {
            let error = plan(&request(capabilities, parameters, range), MAX).unwrap_err();
            assert_eq!(error.code() as i32, 3, "{capabilities:?} {parameters:?} {range:?}: {error}");
        }
    }

    const MI: i64 = 1 << 20;

    #[test]
    fn sizes() {
        let size = |capability, parameters: &[(&str, &str)], range| {
            plan(&request(&[capability], parameters, range), MAX)
                .map(|plan| plan.capacity)
                .map_err(|error| error.code() as i32)
        };
        assert_eq!(size(mount(""), &[], (5, 0)), Ok(5));
        assert_eq!(size(mount(""), &[], (0, 0)), Ok(DEFAULT_SIZE));
        assert_eq!(size(mount(""), &[], (0, 5)), Ok(5));
        assert_eq!(size(block(), &[], (5, 0)), Ok(UNIT));
        assert_eq!(size(block(), &[], (MI + 1, 2 * MI)), Ok(2 * UNIT));
        assert_eq!(size(block(), &[], (MI + 1, 2 * MI - 1)), Err(11));
        assert_eq!(size(block(), &[], (0, 5)), Err(11));
        assert_eq!(size(mount(""), &[], (i64::MAX, 0)), Err(11));
        assert_eq!(size(block(), &[], (i64::MAX, 0)), Err(11));
        assert_eq!(size(mount(""), &[("backing", "file")], (5, 0)), Ok(MIN_EXT));
    }

    proptest! {
        #[test]
        fn a_size_is_always_within_the_request(required in 0..=i64::MAX, limit in 0..=i64::MAX, unit in prop_oneof![Just(1), Just(UNIT)]) {
            let range = proto::CapacityRange { required_bytes: required, limit_bytes: limit };
            if let Ok(size) = size(Some(&range), unit, unit, MAX) {
                prop_assert!(size >= required.unsigned_abs() && size <= MAX && size % unit == 0);
                prop_assert!(limit == 0 || size <= limit.unsigned_abs());
            }
        }
    }

    #[test]
    fn a_repeated_request_is_compatible_and_others_are_not() {
        let first = request(&[mount("")], &[("kind", "fast")], (1 << 20, 1 << 22));
        let volume = made(plan(&first, MAX).unwrap());
        let check = |request: &proto::CreateVolumeRequest| {
            compatible(&volume, &plan(request, MAX).unwrap(), request.capacity_range.as_ref())
        };
        check(&first).unwrap();
        check(&request(&[mount("")], &[("kind", "fast")], (1, 1 << 20))).unwrap();
        for other in [
            request(&[block()], &[("kind", "fast")], (1 << 20, 1 << 22)),
            request(&[mount("")], &[("kind", "slow")], (1 << 20, 1 << 22)),
            request(&[mount("")], &[], (1 << 20, 1 << 22)),
            request(&[mount("")], &[("kind", "fast")], (1 << 21, 1 << 22)),
            request(&[mount("")], &[("kind", "fast")], (1, 1 << 19)),
        ] {
            assert_eq!(check(&other).unwrap_err().code() as i32, 6, "{other:?}");
        }
    }

    #[test]
    fn pools_are_picked() {
        let pools = BTreeMap::from([("fast".to_owned(), 100), ("slow".to_owned(), 1000)]);
        let used = |kind: &str| if kind == "fast" { 60 } else { 0 };
        let mut plan = plan(&request(&[mount("")], &[], (50, 0)), MAX).unwrap();
        assert_eq!(pool(&plan, &pools, used).unwrap().as_deref(), Some("slow"));
        plan.capacity = 40;
        assert_eq!(pool(&plan, &pools, used).unwrap().as_deref(), Some("fast"));
        plan.capacity = 1001;
        assert_eq!(pool(&plan, &pools, used).unwrap_err().code() as i32, 8);
        plan.kind = Some("tape".to_owned());
        assert!(pool(&plan, &pools, used).unwrap_err().to_string().contains("fast, slow"));
        assert_eq!(pool(&plan, &BTreeMap::new(), used).unwrap_err().code() as i32, 3);
        plan.kind = None;
        assert_eq!(pool(&plan, &BTreeMap::new(), used).unwrap(), None);
    }

    #[test]
    fn only_this_node_is_here() {
        let requirement =
            |requisite: Vec<proto::Topology>| proto::TopologyRequirement { requisite, preferred: Vec::new() };
        assert!(reachable(None, "node-1"));
        assert!(reachable(Some(&requirement(vec![])), "node-1"));
        assert!(reachable(Some(&requirement(vec![here("node-2"), here("node-1")])), "node-1"));
        assert!(!reachable(Some(&requirement(vec![here("node-2")])), "node-1"));
        let zone = proto::Topology { segments: HashMap::from([("zone".to_owned(), "a".to_owned())]) };
        assert!(!is_here(&zone, "node-1"));
    }
}
