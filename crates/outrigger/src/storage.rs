//! `outrigger storage`: the storage wing's daemons.

use anyhow::{Context as _, Result};
use outrigger_daemon::Shutdown;

use crate::cli::StorageCommand;
use crate::lab::supervisor::follow_parent;

pub(crate) async fn run(command: StorageCommand) -> Result<()> {
    follow_parent()?;
    let shutdown = Shutdown::on_signals().context("cannot listen for signals")?;
    match command {
        StorageCommand::Driver(options) => outrigger_hostpath::run(*options, shutdown).await?,
        StorageCommand::Controllers(options) => Box::pin(outrigger_sidecars::run(*options, shutdown)).await?,
    }
    Ok(())
}
