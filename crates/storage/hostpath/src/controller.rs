//! The Controller service.

use std::collections::HashMap;

use outrigger_csi::{self as csi, Error, Listing, Page, proto};
use tonic::async_trait;

use crate::driver::HostPath;
use crate::options::Config;
use crate::provision;
use crate::quantity::Bytes;
use crate::store::{Durability, Unreserved};
use crate::volume::{Attached, Volume, VolumeId};

/// A size on the wire. The parser of sizes and the plan keep them below 2^63.
fn wire(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn describe(volume: &Volume, config: &Config) -> proto::Volume {
    proto::Volume {
        capacity_bytes: wire(volume.capacity),
        volume_id: volume.id.to_string(),
        volume_context: volume.parameters.clone().into_iter().collect(),
        content_source: None,
        accessible_topology: config.topology.then(|| provision::here(&config.node_id)).into_iter().collect(),
    }
}

/// The nodes that the volume is attached to; without attachment nobody is told of nodes.
fn nodes(volume: &Volume, config: &Config) -> Vec<String> {
    volume.attached.is_some().then(|| config.node_id.clone()).into_iter().collect()
}

#[async_trait]
impl csi::Identity for HostPath {
    fn name(&self) -> &str {
        &self.0.config.name
    }

    fn vendor_version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    async fn probe(&self) -> Result<bool, Error> {
        if self.0.store.has_failed() {
            return Err(Error::failed_precondition(
                "the state file could not be written: the driver has to be restarted",
            ));
        }
        Ok(true)
    }
}

#[async_trait]
impl csi::Controller for HostPath {
    async fn validate_volume_capabilities(
        &self,
        request: proto::ValidateVolumeCapabilitiesRequest,
    ) -> Result<proto::ValidateVolumeCapabilitiesResponse, Error> {
        use proto::validate_volume_capabilities_response::Confirmed;
        let volume = self.volume(&request.volume_id)?;
        let differs = |given: &HashMap<String, String>| {
            !given.is_empty()
                && (given.len() != volume.parameters.len()
                    || volume.parameters.iter().any(|(key, value)| given.get(key) != Some(value)))
        };
        let refusal = if differs(&request.volume_context) {
            Some("volume_context is not the volume's".to_owned())
        } else if differs(&request.parameters) {
            Some("the volume was made with other parameters".to_owned())
        } else if !request.mutable_parameters.is_empty() {
            Some("mutable_parameters are not supported".to_owned())
        } else {
            provision::unsupported(&volume, &request.volume_capabilities)?
        };
        Ok(match refusal {
            Some(message) => proto::ValidateVolumeCapabilitiesResponse { confirmed: None, message },
            None => proto::ValidateVolumeCapabilitiesResponse {
                confirmed: Some(Confirmed {
                    volume_context: request.volume_context,
                    volume_capabilities: request.volume_capabilities,
                    parameters: request.parameters,
                    mutable_parameters: HashMap::new(),
                }),
                message: String::new(),
            },
        })
    }
}

#[async_trait]
impl csi::CreateDeleteVolume for HostPath {
    async fn create_volume(&self, request: proto::CreateVolumeRequest) -> Result<proto::Volume, Error> {
        let config = &self.0.config;
        let store = &self.0.store;
        let plan = provision::plan(&request, config.max_volume_size)?;
        if config.topology && !provision::reachable(request.accessibility_requirements.as_ref(), &config.node_id) {
            return Err(Error::resource_exhausted(format!(
                "no requested topology includes this node ({}={}), and the driver makes volumes here only",
                provision::TOPOLOGY_KEY,
                config.node_id
            )));
        }
        if let Some(volume) = store.by_name(&request.name) {
            // Whoever is deleting the volume at this moment must not make this answer untrue.
            let held = store.hold(volume.id).filter(|_| store.get(volume.id).is_some());
            let _hold = held.ok_or_else(|| {
                Error::aborted(format!("another call is changing volume {} at this moment: try again later", volume.id))
            })?;
            provision::compatible(&volume, &plan, request.capacity_range.as_ref())?;
            return Ok(describe(&volume, config));
        }
        let kind = provision::pool(&plan, &config.pools, |kind| store.used(kind))?;
        let pool = kind.clone().unwrap_or_default();
        let limit = config.pools.get(&pool).copied().unwrap_or(u64::MAX);
        let claim = store.reserve(&request.name, &pool, plan.capacity, limit).map_err(|reason| match reason {
            Unreserved::Name => {
                Error::aborted(format!("another call makes the volume {:?} at this moment: repeat", request.name))
            }
            Unreserved::Room { used } => Error::resource_exhausted(format!(
                "a volume of {} does not fit into the capacity pool {pool:?}: {} of {} are in use",
                Bytes(plan.capacity),
                Bytes(used),
                Bytes(limit)
            )),
        })?;
        let id = VolumeId::random();
        let (backing, capacity) = (plan.backing.clone(), plan.capacity);
        self.blocking(move |inner| Ok(inner.backings.make(id, &backing, capacity)?)).await?;
        let volume = Volume {
            id,
            name: request.name,
            capacity: plan.capacity,
            access: plan.access,
            backing: plan.backing,
            kind,
            parameters: plan.parameters,
            attached: None,
            staged: None,
            published: std::collections::BTreeMap::new(),
        };
        match store.put_claimed(volume, Durability::Power, claim).await {
            Ok(volume) => Ok(describe(&volume, config)),
            Err(error) if !error.is_definite() => Err(error.into()),
            Err(error) => {
                // Should this fail too, the next start removes it: nobody has been told of the volume.
                let _ = self.blocking(move |inner| Ok(inner.backings.discard(id)?)).await;
                Err(error.into())
            }
        }
    }

    async fn delete_volume(&self, request: proto::DeleteVolumeRequest) -> Result<(), Error> {
        if self.find(&request.volume_id).is_none() {
            return Ok(());
        }
        let (_hold, volume) = self.hold(&request.volume_id)?;
        if let Some(reason) = volume.in_use() {
            return Err(Error::failed_precondition(format!("volume {} is in use: {reason}", volume.id)));
        }
        let id = volume.id;
        self.blocking(move |inner| {
            // Left over if the driver was stopped between unmounting and detaching.
            if volume.backing != crate::volume::Backing::Directory {
                inner.kernel.release_devices(id, &inner.backings.path(id))?;
            }
            Ok(inner.backings.set_aside(id)?)
        })
        .await?;
        if let Err(error) = self.0.store.remove(id).await {
            if error.is_definite() {
                let _ = self.blocking(move |inner| Ok(inner.backings.restore(id)?)).await;
            }
            return Err(error.into());
        }
        if let Err(error) = self.blocking(move |inner| Ok(inner.backings.destroy(id)?)).await {
            tracing::warn!(volume = %id, error = %crate::store::describe(&error), "cannot remove the content of a deleted volume; the next start tries again");
        }
        Ok(())
    }
}

#[async_trait]
impl csi::ListVolumes for HostPath {
    async fn list_volumes(&self, page: Page) -> Result<Listing<proto::list_volumes_response::Entry>, Error> {
        use proto::list_volumes_response::{Entry, VolumeStatus};
        let after = page
            .after()?
            .map(|key| {
                key.parse::<VolumeId>().map_err(|()| Error::aborted(format!("starting_token names no volume: {key:?}")))
            })
            .transpose()?;
        // One more than fits tells whether there is another page.
        let limit = page.max_entries.map_or(usize::MAX, |max| (max.get() as usize).saturating_add(1));
        let config = &self.0.config;
        let entries = self.0.store.list(after, limit).into_iter().map(|volume| Entry {
            volume: Some(describe(&volume, config)),
            status: Some(VolumeStatus { published_node_ids: nodes(&volume, config), volume_condition: None }),
        });
        page.take(entries, |entry| entry.volume.as_ref().map_or("", |volume| volume.volume_id.as_str()))
    }
}

#[async_trait]
impl csi::GetVolume for HostPath {
    async fn controller_get_volume(
        &self,
        request: proto::ControllerGetVolumeRequest,
    ) -> Result<proto::ControllerGetVolumeResponse, Error> {
        use proto::controller_get_volume_response::VolumeStatus;
        let volume = self.volume(&request.volume_id)?;
        let config = &self.0.config;
        Ok(proto::ControllerGetVolumeResponse {
            volume: Some(describe(&volume, config)),
            status: Some(VolumeStatus { published_node_ids: nodes(&volume, config), volume_condition: None }),
        })
    }
}

#[async_trait]
impl csi::GetCapacity for HostPath {
    async fn get_capacity(&self, request: proto::GetCapacityRequest) -> Result<proto::GetCapacityResponse, Error> {
        let config = &self.0.config;
        let here = !config.topology
            || request
                .accessible_topology
                .as_ref()
                .is_none_or(|topology| provision::is_here(topology, &config.node_id));
        let left = |kind: &str, size: u64| size.saturating_sub(self.0.store.used(kind));
        let kind = request.parameters.get("kind").filter(|kind| !kind.is_empty());
        // A volume lies in one pool, so the largest one is bounded by the emptiest pool, not by the sum.
        let (available, largest) = match kind {
            _ if !here => (0, 0),
            None if config.pools.is_empty() => (config.max_volume_size, config.max_volume_size),
            None => config
                .pools
                .iter()
                .map(|(kind, size)| left(kind, *size))
                .fold((0_u64, 0), |(sum, most), room| (sum.saturating_add(room), most.max(room))),
            Some(kind) => {
                let room = config.pools.get(kind).map_or(0, |size| left(kind, *size));
                (room, room)
            }
        };
        Ok(proto::GetCapacityResponse {
            available_capacity: wire(available),
            maximum_volume_size: Some(wire(largest.min(config.max_volume_size))),
            minimum_volume_size: Some(0),
        })
    }
}

#[async_trait]
impl csi::PublishVolume for HostPath {
    async fn controller_publish_volume(
        &self,
        request: proto::ControllerPublishVolumeRequest,
    ) -> Result<HashMap<String, String>, Error> {
        let (_hold, volume) = self.hold(&request.volume_id)?;
        let config = &self.0.config;
        if request.node_id != config.node_id {
            return Err(Error::not_found(format!(
                "node {:?} does not exist: this driver serves {:?} only",
                request.node_id, config.node_id
            )));
        }
        let capability = provision::capability(request.volume_capability.as_ref())?;
        provision::serves(&volume, &capability).map_err(Error::invalid_argument)?;
        let wanted = Attached { capability, read_only: request.readonly };
        match &volume.attached {
            Some(attached) if *attached == wanted => return Ok(HashMap::new()),
            Some(_) => {
                return Err(Error::already_exists(format!(
                    "volume {} is attached to this node with another capability or readonly setting: detach it first",
                    volume.id
                )));
            }
            None => {}
        }
        let limit = u64::try_from(config.attach_limit).ok().filter(|limit| *limit > 0);
        let place = self.0.store.attach(limit.unwrap_or(u64::MAX)).ok_or_else(|| {
            Error::resource_exhausted(format!(
                "node {} has {} volumes attached, which is its limit",
                config.node_id, config.attach_limit
            ))
        })?;
        let changed = Volume { attached: Some(wanted), ..Volume::clone(&volume) };
        self.0.store.put_claimed(changed, Durability::Power, place).await?;
        Ok(HashMap::new())
    }

    async fn controller_unpublish_volume(&self, request: proto::ControllerUnpublishVolumeRequest) -> Result<(), Error> {
        let config = &self.0.config;
        // A volume that does not exist, and one on a node that does not, is surely not attached.
        if self.find(&request.volume_id).is_none() {
            return Ok(());
        }
        if !request.node_id.is_empty() && request.node_id != config.node_id {
            return Ok(());
        }
        let (_hold, volume) = self.hold(&request.volume_id)?;
        if volume.attached.is_none() {
            return Ok(());
        }
        if let (true, Some(staged)) = (config.check_lifecycle, &volume.staged) {
            return Err(Error::failed_precondition(format!(
                "volume {} is still staged at {} on this node",
                volume.id, staged.path
            )));
        }
        let changed = Volume { attached: None, ..Volume::clone(&volume) };
        self.0.store.put(changed, Durability::Power).await?;
        Ok(())
    }
}
