//! Load on a CSI driver while its number of volumes grows.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use outrigger_csi::{Client, proto};
use outrigger_rpc::Endpoint;

use crate::figures::{self, Times, line};
use crate::process::{Daemon, cpu, resident};

const CALLERS: usize = 10;
const PATIENCE: Duration = Duration::from_secs(30);
/// Creates in one measured burst.
const BURST: usize = 500;

pub(crate) async fn run(endpoint: Option<&str>, pids: &[u32], binary: &Path, volumes: usize, page: i32) -> Result<()> {
    if let Some(endpoint) = endpoint {
        return measure(endpoint, pids, volumes, page).await;
    }
    let scratch = tempfile::tempdir()?;
    let endpoint = format!("unix://{}/csi.sock", scratch.path().display());
    let mut command = tokio::process::Command::new(binary);
    command
        .args(["storage", "driver", "--nodeid", "bench", "--endpoint", &endpoint])
        .arg("--statedir")
        .arg(scratch.path().join("state"));
    let daemon = Daemon::start(&mut command, scratch.path()).await?;
    let outcome = measure(&endpoint, &[daemon.pid()?], volumes, page).await;
    daemon.stop().await?;
    outcome
}

async fn measure(endpoint: &str, pids: &[u32], volumes: usize, page: i32) -> Result<()> {
    let endpoint: Endpoint = endpoint.parse()?;
    let client = Client::connect(&endpoint, PATIENCE).await?;
    let mut present = 0;
    let before = if pids.is_empty() { 0.0 } else { cpu(pids)? };
    for stage in [10, 2_000, 10_000] {
        if stage > volumes {
            break;
        }
        create(&client, present..stage).await?;
        present = stage;
        let start = Instant::now();
        let mut times = create(&client, present..present + BURST).await?;
        figures::run(&format!("CreateVolume with {stage} volumes, {CALLERS} callers"), &mut times, start.elapsed());
        present += BURST;
        let start = Instant::now();
        let listed = list(&client, page).await?;
        anyhow::ensure!(listed == present, "{listed} volumes are listed, {present} were made");
        line(&format!("ListVolumes of {present}, all pages"), figures::milliseconds(start.elapsed()), "ms");
        if !pids.is_empty() {
            line(&format!("resident memory with {present} volumes"), format!("{:.1}", resident(pids)?), "MB");
        }
    }
    if !pids.is_empty() {
        #[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
        let each = (cpu(pids)? - before) / present as f64 * 1e6;
        line("CPU time of the driver for each volume made", format!("{each:.0}"), "us");
    }
    let start = Instant::now();
    let mut times = delete(&client, page).await?;
    figures::run(&format!("DeleteVolume down to zero, {CALLERS} callers"), &mut times, start.elapsed());
    Ok(())
}

/// Makes the volumes of these numbers, `CALLERS` at a time.
async fn create(client: &Client, numbers: std::ops::Range<usize>) -> Result<Times> {
    let request = |n: usize| proto::CreateVolumeRequest {
        name: format!("bench-{n}"),
        capacity_range: Some(proto::CapacityRange { required_bytes: 1 << 20, limit_bytes: 0 }),
        volume_capabilities: vec![proto::VolumeCapability {
            access_mode: Some(proto::volume_capability::AccessMode {
                mode: proto::volume_capability::access_mode::Mode::SingleNodeWriter.into(),
            }),
            access_type: Some(proto::volume_capability::AccessType::Mount(
                proto::volume_capability::MountVolume::default(),
            )),
        }],
        ..Default::default()
    };
    in_parallel(numbers.collect(), |n| {
        let (client, request) = (client.clone(), request(n));
        async move { Ok(client.create_volume(request, PATIENCE).await.map(drop)?) }
    })
    .await
}

async fn delete(client: &Client, page: i32) -> Result<Times> {
    let ids = pages(client, page).await?;
    in_parallel(ids, |volume_id| {
        let client = client.clone();
        let request = proto::DeleteVolumeRequest { volume_id, ..Default::default() };
        async move { Ok(client.delete_volume(request, PATIENCE).await.map(drop)?) }
    })
    .await
}

async fn in_parallel<T, F>(items: Vec<T>, call: impl Fn(T) -> F) -> Result<Times>
where
    F: Future<Output = Result<()>>,
{
    use futures_util::StreamExt as _;
    let calls = items.into_iter().map(|item| {
        let call = call(item);
        async move {
            let start = Instant::now();
            call.await.map(|()| start.elapsed())
        }
    });
    let mut times = Times::default();
    let mut answers = futures_util::stream::iter(calls).buffer_unordered(CALLERS);
    while let Some(time) = answers.next().await {
        times.push(time?);
    }
    Ok(times)
}

async fn list(client: &Client, page: i32) -> Result<usize> {
    Ok(pages(client, page).await?.len())
}

async fn pages(client: &Client, page: i32) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    let mut starting_token = String::new();
    loop {
        let request = proto::ListVolumesRequest { max_entries: page, starting_token };
        let page = client.list_volumes(request, PATIENCE).await?;
        for entry in page.entries {
            ids.push(entry.volume.context("an entry has a volume")?.volume_id);
        }
        starting_token = page.next_token;
        if starting_token.is_empty() {
            return Ok(ids);
        }
    }
}
