//! The lab's process: API server, controllers and node in one, the plugins supervised beside it.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context as _, Result};
use outrigger_daemon::{Shutdown, notify_ready};
use outrigger_lab_apiserver::{Server, ServerOptions};
use outrigger_lab_controllers::Controllers;
use outrigger_lab_node::{Node, objects::node_name};
use outrigger_rpc::Endpoint;

use super::addons;
use super::cleanup;
use super::layout::{Child, Layout, ProcessId, Record};
use super::supervisor::{Program, Supervised};
use crate::cli::{Durability, LabUp};

/// How long a plugin may take to stop; a driver may be in the middle of a call.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the lab until it is told to stop.
pub(crate) async fn run(up: &LabUp, verbosity: u8, layout: &Layout, shutdown: Shutdown) -> Result<()> {
    layout.create()?;
    let _lock = layout.lock()?;
    let server = Server::start(ServerOptions {
        listen: up.listen,
        durability: match up.durability {
            Durability::Memory => outrigger_lab_store::Durability::Memory,
            Durability::Process => outrigger_lab_store::Durability::Process,
            Durability::Power => outrigger_lab_store::Durability::Power,
        },
        ..ServerOptions::new(layout.root())
    })
    .await
    .context("cannot start the API server")?;
    // What a killed lab left mounted is released before a plugin starts on top of it; the lock says that nobody uses it.
    warn_of(&cleanup::release(layout)?);
    let mut record = Record {
        process: ProcessId::current()?,
        address: server.address(),
        started: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        ready: false,
        children: Vec::new(),
    };
    layout.write_record(&record)?;

    let controllers = Controllers::start(
        server.client("system:kube-controller-manager", "outrigger-lab-controllers"),
        server.api().store().clone(),
        outrigger_lab_controllers::Options::new(server.ca_pem()),
    );
    let mut children = Vec::new();
    let work = async {
        let name = node_name(&rustix::system::uname().nodename().to_string_lossy());
        let node = Node::start(server.client(&format!("system:node:{name}"), "outrigger-lab-node"), &name)
            .await
            .context("cannot register the node")?;
        if !up.bare {
            install(&server).await?;
            children = plugins(layout, &name, verbosity)?;
            follow_plugins(layout, &node, &children, &mut record).await?;
        }
        record.ready = true;
        layout.write_record(&record)?;
        notify_ready().context("cannot tell that the lab is ready")?;
        tracing::info!(address = %record.address, kubeconfig = %layout.kubeconfig().display(), "the lab is ready");
        watch_plugins(layout, &node, &children, &mut record).await
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        () = shutdown.cancelled() => Ok(()),
    };

    // The reverse of the start: whoever calls stops before whoever is called.
    tracing::info!("the lab stops");
    for child in children.into_iter().rev() {
        child.stop(PATIENCE).await;
    }
    controllers.stop().await;
    server.shutdown().await;
    let released = cleanup::release(layout);
    layout.remove_record()?;
    outcome?;
    warn_of(&released?);
    Ok(())
}

fn warn_of(lingering: &[cleanup::Lingering]) {
    for one in lingering {
        tracing::warn!("{one}");
    }
}

/// Creates the objects of the storage wing's manifests, or brings them up to date.
async fn install(server: &Server) -> Result<()> {
    let client = server.client("system:addon-manager", addons::FIELD_MANAGER);
    for manifest in addons::STORAGE {
        for object in addons::documents(*manifest)? {
            addons::apply(&client, object).await.with_context(|| format!("cannot install deploy/{}", manifest.path))?;
        }
    }
    Ok(())
}

/// The plugins, in the order of their start.
fn plugins(layout: &Layout, node: &str, verbosity: u8) -> Result<Vec<Supervised>> {
    let verbosity = format!("-v={verbosity}");
    let socket = layout.driver_socket();
    let words = |words: &[&dyn AsRef<std::ffi::OsStr>]| -> Vec<OsString> {
        words.iter().map(|word| word.as_ref().to_owned()).collect()
    };
    let driver = words(&[
        &"storage",
        &"driver",
        &"--log-format",
        &"text",
        &verbosity,
        &"--endpoint",
        &socket,
        &"--statedir",
        &layout.driver_state(),
        &"--nodeid",
        &node,
        &"--enable-attach=true",
    ]);
    let controllers = words(&[
        &"storage",
        &"controllers",
        &"--log-format",
        &"text",
        &verbosity,
        &"--csi-address",
        &socket,
        &"--kubeconfig",
        &layout.kubeconfig(),
        // Where its record of calls under way is kept; the users' namespaces are theirs.
        &"--leader-election-namespace",
        &"kube-system",
        // The originals' 5 requests a second protect a shared API server; this one has no other users.
        &"--kube-api-qps",
        &"1000",
        &"--kube-api-burst",
        &"1000",
    ]);
    [("driver", driver), ("controllers", controllers)]
        .into_iter()
        .map(|(name, args)| Supervised::start(Program { name, args, log: layout.log(name) }, layout.root()))
        .collect()
}

/// Waits until every plugin is ready and the driver is registered with the node.
async fn follow_plugins(layout: &Layout, node: &Node, children: &[Supervised], record: &mut Record) -> Result<()> {
    for child in children {
        child.ready().await?;
        write_children(layout, children, record)?;
        if child.name() == "driver" {
            register(layout, node).await?;
        }
    }
    Ok(())
}

/// Registers the driver again when it was started again, and keeps the record of who runs. Never returns but by error.
async fn watch_plugins(layout: &Layout, node: &Node, children: &[Supervised], record: &mut Record) -> Result<()> {
    let mut changes: Vec<_> = children.iter().map(Supervised::changes).collect();
    let mut registered = children.iter().find(|child| child.name() == "driver").and_then(|child| child.state().process);
    loop {
        if changes.is_empty() {
            return std::future::pending().await;
        }
        let waits = changes.iter_mut().map(|change| Box::pin(change.changed()));
        let (_, place, _) = futures_util::future::select_all(waits).await;
        let state = *changes[place].borrow_and_update();
        write_children(layout, children, record)?;
        if children[place].name() == "driver" && state.ready && state.process != registered {
            registered = state.process;
            if let Err(error) = register(layout, node).await {
                tracing::error!("the driver is not registered: {error:#}");
            }
        }
    }
}

async fn register(layout: &Layout, node: &Node) -> Result<()> {
    let socket = layout.driver_socket();
    let endpoint: Endpoint = socket.to_str().context("the lab's directory is not valid UTF-8")?.parse()?;
    node.register_csi(&endpoint).await.map(drop).context("cannot register the driver with the node")
}

fn write_children(layout: &Layout, children: &[Supervised], record: &mut Record) -> Result<()> {
    record.children = children
        .iter()
        .map(|child| {
            let state = child.state();
            Child { name: child.name().to_owned(), process: state.process, restarts: state.restarts }
        })
        .collect();
    layout.write_record(record)
}
