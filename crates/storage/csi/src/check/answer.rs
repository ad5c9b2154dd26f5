//! What drivers answer, held against the request and the specification before it goes out.
//!
//! A wrong answer is the driver's fault, so the caller gets what is wrong, not the answer: as `INTERNAL` if the call only
//! read. After a call that changes something the change is there, wrong or not, and `INTERNAL` would tell the caller the
//! contrary: a provisioner whose claim goes would never delete the volume. So those get `UNAVAILABLE`, after which callers
//! repeat the call, and take for granted neither that it was done nor that it was not.

use std::collections::{HashMap, HashSet};

use prost_types::Timestamp;

use super::{MAX_NODE_ID, topology};
use crate::capability::{Capabilities, ControllerCapability, PluginService};
use crate::page::{Listing, MAX_MAP, MAX_STRING, Page};
use crate::{Error, proto};

type Outcome = Result<(), Error>;

fn wrong(message: impl Into<String>) -> Error {
    Error::internal(message).in_answer()
}

/// What was found in the answer to a call that changes something.
fn changing(outcome: Outcome) -> Outcome {
    outcome.map_err(Error::uncertain)
}

fn id(name: &str, id: &str, limit: usize) -> Outcome {
    match id.len() {
        0 => Err(wrong(format!("{name} is empty"))),
        length if length > limit => Err(wrong(format!("{name} has {length} bytes, more than the allowed {limit}"))),
        _ => Ok(()),
    }
}

fn same(name: &str, answered: &str, asked: &str) -> Outcome {
    if answered == asked { Ok(()) } else { Err(wrong(format!("{name} is {answered:?}, asked was {asked:?}"))) }
}

fn map(name: &str, map: &HashMap<String, String>) -> Outcome {
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_MAP {
        return Err(wrong(format!("{name} has {bytes} bytes of keys and values, more than the allowed {MAX_MAP}")));
    }
    Ok(())
}

fn not_negative(name: &str, number: i64) -> Outcome {
    if number < 0 { Err(wrong(format!("{name} is negative: {number}"))) } else { Ok(()) }
}

fn time(name: &str, time: Option<&Timestamp>) -> Outcome {
    if time.is_none() { Err(wrong(format!("{name} is missing"))) } else { Ok(()) }
}

fn place(name: &str, place: &proto::Topology, capabilities: &Capabilities) -> Outcome {
    if !capabilities.has(PluginService::VolumeAccessibilityConstraints) {
        let needs = "needs the capability VOLUME_ACCESSIBILITY_CONSTRAINTS, which this plugin does not have";
        return Err(wrong(format!("{name} {needs}")));
    }
    let segments = place.segments.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    topology::check(name, segments).map_err(Error::in_answer)
}

/// A capacity within the range asked for; 0 means that the driver does not know, where that is allowed.
fn capacity(bytes: i64, range: Option<&proto::CapacityRange>, known: bool) -> Outcome {
    not_negative("capacity_bytes", bytes)?;
    if bytes == 0 {
        return if known { Err(wrong("capacity_bytes is 0")) } else { Ok(()) };
    }
    let Some(range) = range else { return Ok(()) };
    if bytes < range.required_bytes {
        return Err(wrong(format!("capacity_bytes {bytes} is less than the required {}", range.required_bytes)));
    }
    if range.limit_bytes != 0 && bytes > range.limit_bytes {
        return Err(wrong(format!("capacity_bytes {bytes} is more than the limit {}", range.limit_bytes)));
    }
    Ok(())
}

fn volume(volume: &proto::Volume, capabilities: &Capabilities) -> Outcome {
    id("volume_id", &volume.volume_id, MAX_STRING)?;
    not_negative("capacity_bytes", volume.capacity_bytes)?;
    map("volume_context", &volume.volume_context)?;
    volume.accessible_topology.iter().try_for_each(|topology| place("accessible_topology", topology, capabilities))
}

pub(crate) fn create_volume(
    request: &proto::CreateVolumeRequest,
    answer: &proto::Volume,
    capabilities: &Capabilities,
) -> Outcome {
    let source = || {
        if answer.content_source == request.volume_content_source {
            Ok(())
        } else {
            Err(wrong("content_source is not the request's volume_content_source"))
        }
    };
    changing(
        volume(answer, capabilities)
            .and_then(|()| capacity(answer.capacity_bytes, request.capacity_range.as_ref(), false))
            .and_then(|()| source()),
    )
}

pub(crate) fn publish_context(answer: &HashMap<String, String>) -> Outcome {
    changing(map("publish_context", answer))
}

fn listing<T>(page: &Page, listing: &Listing<T>) -> Outcome {
    if let Some(max) = page.max_entries
        && listing.entries.len() > max.get() as usize
    {
        return Err(wrong(format!("there are {} entries, asked were {max} at most", listing.entries.len())));
    }
    if let Some(token) = &listing.next_token {
        id("next_token", token, MAX_STRING)?;
        if page.token.as_ref() == Some(token) {
            return Err(wrong("next_token is the token asked for: the caller would go round in circles"));
        }
    }
    Ok(())
}

pub(crate) fn list_volumes(
    page: &Page,
    answer: &Listing<proto::list_volumes_response::Entry>,
    capabilities: &Capabilities,
) -> Outcome {
    listing(page, answer)?;
    let nodes_allowed = capabilities.has(ControllerCapability::ListVolumesPublishedNodes);
    for entry in &answer.entries {
        let Some(listed) = &entry.volume else {
            return Err(wrong("an entry has no volume"));
        };
        volume(listed, capabilities)?;
        let nodes = entry.status.as_ref().map_or(&[][..], |status| &status.published_node_ids);
        if !nodes_allowed && !nodes.is_empty() {
            let needs = "needs the capability LIST_VOLUMES_PUBLISHED_NODES, which this plugin does not have";
            return Err(wrong(format!("published_node_ids of volume {:?} {needs}", listed.volume_id)));
        }
    }
    Ok(())
}

pub(crate) fn get_capacity(answer: &proto::GetCapacityResponse) -> Outcome {
    not_negative("available_capacity", answer.available_capacity)?;
    not_negative("maximum_volume_size", answer.maximum_volume_size.unwrap_or_default())?;
    not_negative("minimum_volume_size", answer.minimum_volume_size.unwrap_or_default())
}

pub(crate) fn snapshot(answer: &proto::Snapshot) -> Outcome {
    id("snapshot_id", &answer.snapshot_id, MAX_STRING)?;
    id("source_volume_id", &answer.source_volume_id, MAX_STRING)?;
    not_negative("size_bytes", answer.size_bytes)?;
    time("creation_time", answer.creation_time.as_ref())
}

pub(crate) fn create_snapshot(request: &proto::CreateSnapshotRequest, answer: &proto::Snapshot) -> Outcome {
    changing(
        snapshot(answer).and_then(|()| same("source_volume_id", &answer.source_volume_id, &request.source_volume_id)),
    )
}

pub(crate) fn get_snapshot(request: &proto::GetSnapshotRequest, answer: &proto::Snapshot) -> Outcome {
    snapshot(answer)?;
    same("snapshot_id", &answer.snapshot_id, &request.snapshot_id)
}

pub(crate) fn list_snapshots(
    request: &proto::ListSnapshotsRequest,
    page: &Page,
    answer: &Listing<proto::Snapshot>,
) -> Outcome {
    listing(page, answer)?;
    for entry in &answer.entries {
        snapshot(entry)?;
        if !request.source_volume_id.is_empty() {
            same("source_volume_id", &entry.source_volume_id, &request.source_volume_id)?;
        }
        if !request.snapshot_id.is_empty() {
            same("snapshot_id", &entry.snapshot_id, &request.snapshot_id)?;
        }
    }
    Ok(())
}

pub(crate) fn expand_volume(
    request: &proto::ControllerExpandVolumeRequest,
    answer: &proto::ControllerExpandVolumeResponse,
) -> Outcome {
    // A volume that was larger before stays so: the limit bounds growth, not what is there.
    let required = request.capacity_range.map(|range| proto::CapacityRange { limit_bytes: 0, ..range });
    changing(capacity(answer.capacity_bytes, required.as_ref(), true))
}

pub(crate) fn node_expand_volume(
    request: &proto::NodeExpandVolumeRequest,
    answer: proto::NodeExpandVolumeResponse,
) -> Outcome {
    let required = request.capacity_range.map(|range| proto::CapacityRange { limit_bytes: 0, ..range });
    changing(capacity(answer.capacity_bytes, required.as_ref(), false))
}

pub(crate) fn get_volume(
    request: &proto::ControllerGetVolumeRequest,
    answer: &proto::ControllerGetVolumeResponse,
    capabilities: &Capabilities,
) -> Outcome {
    let Some(found) = &answer.volume else {
        return Err(wrong("volume is missing"));
    };
    volume(found, capabilities)?;
    same("volume_id", &found.volume_id, &request.volume_id)?;
    if answer.status.is_none() {
        return Err(wrong("status is missing"));
    }
    Ok(())
}

fn group(answer: &proto::VolumeGroupSnapshot) -> Outcome {
    id("group_snapshot_id", &answer.group_snapshot_id, MAX_STRING)?;
    time("creation_time", answer.creation_time.as_ref())?;
    if answer.snapshots.is_empty() {
        return Err(wrong("snapshots is empty"));
    }
    for member in &answer.snapshots {
        snapshot(member)?;
        same("group_snapshot_id of a member", &member.group_snapshot_id, &answer.group_snapshot_id)?;
        if answer.ready_to_use && !member.ready_to_use {
            return Err(wrong(format!("the group is ready to use, but its member {:?} is not", member.snapshot_id)));
        }
    }
    Ok(())
}

pub(crate) fn create_group_snapshot(
    request: &proto::CreateVolumeGroupSnapshotRequest,
    answer: &proto::VolumeGroupSnapshot,
) -> Outcome {
    changing(group(answer).and_then(|()| members(request, answer)))
}

fn members(request: &proto::CreateVolumeGroupSnapshotRequest, answer: &proto::VolumeGroupSnapshot) -> Outcome {
    let asked: HashSet<&str> = request.source_volume_ids.iter().map(String::as_str).collect();
    let answered: HashSet<&str> = answer.snapshots.iter().map(|member| member.source_volume_id.as_str()).collect();
    if asked != answered || answer.snapshots.len() != request.source_volume_ids.len() {
        return Err(wrong("the members are not one snapshot of each of source_volume_ids"));
    }
    Ok(())
}

pub(crate) fn get_group_snapshot(
    request: &proto::GetVolumeGroupSnapshotRequest,
    answer: &proto::VolumeGroupSnapshot,
) -> Outcome {
    group(answer)?;
    same("group_snapshot_id", &answer.group_snapshot_id, &request.group_snapshot_id)
}

pub(crate) fn node_info(answer: &proto::NodeGetInfoResponse, capabilities: &Capabilities) -> Outcome {
    id("node_id", &answer.node_id, MAX_NODE_ID)?;
    not_negative("max_volumes_per_node", answer.max_volumes_per_node)?;
    answer.accessible_topology.iter().try_for_each(|topology| place("accessible_topology", topology, capabilities))
}

pub(crate) fn volume_stats(answer: &proto::NodeGetVolumeStatsResponse) -> Outcome {
    for usage in &answer.usage {
        if usage.unit() == proto::volume_usage::Unit::Unknown {
            return Err(wrong("an entry of usage has no unit"));
        }
        not_negative("available", usage.available)?;
        not_negative("total", usage.total)?;
        not_negative("used", usage.used)?;
    }
    Ok(())
}

/// A message of a metadata stream.
pub(crate) trait Blocks {
    /// Block type, size of the volume, and ranges.
    fn parts(&self) -> (i32, i64, &[proto::BlockMetadata]);
}

impl Blocks for proto::GetMetadataAllocatedResponse {
    fn parts(&self) -> (i32, i64, &[proto::BlockMetadata]) {
        (self.block_metadata_type, self.volume_capacity_bytes, &self.block_metadata)
    }
}

impl Blocks for proto::GetMetadataDeltaResponse {
    fn parts(&self) -> (i32, i64, &[proto::BlockMetadata]) {
        (self.block_metadata_type, self.volume_capacity_bytes, &self.block_metadata)
    }
}

/// What the messages of one metadata stream have to agree on.
#[derive(Debug)]
pub(crate) struct Stream {
    starting_offset: i64,
    max_results: usize,
    /// Block type and volume size of the first message.
    header: Option<(i32, i64)>,
    /// Size of all ranges of a stream of blocks of fixed length.
    block: Option<i64>,
    /// End of the last range.
    end: i64,
}

impl Stream {
    pub(crate) fn new(starting_offset: i64, max_results: i32) -> Self {
        let max_results = usize::try_from(max_results).unwrap_or(0);
        Self { starting_offset, max_results, header: None, block: None, end: 0 }
    }

    pub(crate) fn check(&mut self, message: &impl Blocks) -> Outcome {
        let (kind, size, blocks) = message.parts();
        let fixed = match proto::BlockMetadataType::try_from(kind) {
            Ok(proto::BlockMetadataType::FixedLength) => true,
            Ok(proto::BlockMetadataType::VariableLength) => false,
            _ => return Err(wrong(format!("block_metadata_type is {kind}"))),
        };
        if *self.header.get_or_insert((kind, size)) != (kind, size) {
            return Err(wrong("block_metadata_type or volume_capacity_bytes differ from the stream's first message"));
        }
        if self.max_results != 0 && blocks.len() > self.max_results {
            return Err(wrong(format!("there are {} ranges, asked were {} at most", blocks.len(), self.max_results)));
        }
        for block in blocks {
            let (offset, length) = (block.byte_offset, block.size_bytes);
            let Some(end) = offset.checked_add(length).filter(|&end| offset >= 0 && length > 0 && end <= size) else {
                return Err(wrong(format!(
                    "the range of {length} bytes at {offset} is not within the volume of {size} bytes"
                )));
            };
            if offset < self.end {
                return Err(wrong(format!(
                    "the range at {offset} begins before the end of the one before, {}",
                    self.end
                )));
            }
            if end <= self.starting_offset {
                return Err(wrong(format!(
                    "the range at {offset} ends before starting_offset {}",
                    self.starting_offset
                )));
            }
            if fixed && *self.block.get_or_insert(length) != length {
                return Err(wrong(format!(
                    "the range at {offset} is {length} bytes long, others of FIXED_LENGTH are not"
                )));
            }
            self.end = end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: i32, size: i64, ranges: &[(i64, i64)]) -> proto::GetMetadataAllocatedResponse {
        let block_metadata =
            ranges.iter().map(|&(byte_offset, size_bytes)| proto::BlockMetadata { byte_offset, size_bytes }).collect();
        proto::GetMetadataAllocatedResponse { block_metadata_type: kind, volume_capacity_bytes: size, block_metadata }
    }

    #[test]
    fn a_stream_ascends_and_agrees_with_itself() {
        let mut stream = Stream::new(0, 2);
        stream.check(&message(1, 100, &[(0, 10), (20, 10)])).unwrap();
        stream.check(&message(1, 100, &[(90, 10)])).unwrap();
        for (starting_offset, messages, problem) in [
            (0, vec![message(0, 100, &[])], "block_metadata_type is 0"),
            (0, vec![message(1, 100, &[]), message(2, 100, &[])], "differ from the stream's first"),
            (0, vec![message(1, 100, &[]), message(1, 101, &[])], "differ from the stream's first"),
            (0, vec![message(1, 100, &[(0, 1), (1, 1), (2, 1)])], "asked were 2"),
            (0, vec![message(1, 100, &[(10, 10)]), message(1, 100, &[(0, 10)])], "begins before"),
            (0, vec![message(1, 100, &[(0, 10), (10, 20)])], "FIXED_LENGTH"),
            (0, vec![message(2, 100, &[(95, 10)])], "not within the volume"),
            (0, vec![message(2, 100, &[(i64::MAX, 10)])], "not within the volume"),
            (0, vec![message(2, 100, &[(5, 0)])], "not within the volume"),
            (50, vec![message(2, 100, &[(40, 10)])], "before starting_offset"),
        ] {
            let mut stream = Stream::new(starting_offset, 2);
            let error = messages.iter().map(|message| stream.check(message)).find_map(Result::err).unwrap();
            assert!(error.message().contains(problem), "{error:?}");
            assert_eq!(error.code(), tonic::Code::Internal);
        }
    }

    #[test]
    fn volumes_fit_their_requests() {
        let capabilities = Capabilities::default();
        let range = proto::CapacityRange { required_bytes: 10, limit_bytes: 20 };
        let request = proto::CreateVolumeRequest { capacity_range: Some(range), ..Default::default() };
        let volume = |volume_id: &str, capacity_bytes| proto::Volume {
            volume_id: volume_id.into(),
            capacity_bytes,
            ..Default::default()
        };
        for good in [0, 10, 20] {
            create_volume(&request, &volume("v", good), &capabilities).unwrap();
        }
        for (answer, problem) in [
            (volume("", 10), "volume_id is empty"),
            (volume(&"v".repeat(129), 10), "volume_id has 129 bytes"),
            (volume("v", 9), "less than the required 10"),
            (volume("v", 21), "more than the limit 20"),
            (volume("v", -1), "capacity_bytes is negative"),
            (
                proto::Volume { accessible_topology: vec![proto::Topology::default()], ..volume("v", 10) },
                "VOLUME_ACCESSIBILITY_CONSTRAINTS",
            ),
            (
                proto::Volume { content_source: Some(proto::VolumeContentSource::default()), ..volume("v", 10) },
                "content_source",
            ),
        ] {
            let error = create_volume(&request, &answer, &capabilities).unwrap_err();
            assert!(error.message().contains(problem), "{error:?}");
            assert!(error.message().starts_with("the driver's answer is wrong: "), "{error:?}");
            assert_eq!(error.code(), tonic::Code::Unavailable);
        }
    }
}
