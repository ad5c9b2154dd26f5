//! `outrigger csi`: calls a plugin by hand.

use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use outrigger_csi::{Client, call_json, request_template, rpc_names};
use outrigger_rpc::Endpoint;

use crate::cli::CsiArgs;
use crate::lab::layout::Layout;
use crate::say;

/// How long to wait for the socket: enough for a plugin that starts at this moment, and no more for a wrong path.
const CONNECT: Duration = Duration::from_secs(1);

pub(crate) async fn run(args: CsiArgs) -> Result<()> {
    let Some(rpc) = &args.rpc else { return list() };
    // Also when it is not asked for: a wrong name is told before the plugin is looked for.
    let template = request_template(rpc)?;
    if args.template {
        return say(&template);
    }
    let request = request(&args)?;
    let endpoint = endpoint(&args)?;
    let client = Client::connect(&endpoint, args.timeout.min(CONNECT))
        .await
        .context("cannot reach the CSI plugin (--endpoint says where it is)")?;
    let answer = call_json(&client, rpc, &request, args.timeout).await?;
    say(&answer)
}

/// Every RPC under its service, as it is written on the command line.
fn list() -> Result<()> {
    let mut lines = Vec::new();
    let mut service = "";
    for rpc in rpc_names() {
        if rpc.service != service {
            if !service.is_empty() {
                lines.push(String::new());
            }
            service = rpc.service;
            lines.push(service.to_owned());
        }
        lines.push(format!("  {}", rpc.kebab()));
    }
    say(&lines.join("\n"))
}

fn request(args: &CsiArgs) -> Result<String> {
    Ok(match (&args.file, args.request.as_deref()) {
        (Some(file), _) => fs_err::read_to_string(file)?,
        (None, Some("-")) => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read the request from standard input")?;
            text
        }
        (None, Some(text)) => text.to_owned(),
        (None, None) => "{}".to_owned(),
    })
}

fn endpoint(args: &CsiArgs) -> Result<Endpoint> {
    if let Some(endpoint) = &args.endpoint {
        return endpoint.parse().with_context(|| format!("--endpoint {endpoint:?}"));
    }
    let socket = Layout::choose(&args.lab)?.driver_socket();
    if !socket.exists() {
        bail!("no lab runs here ({} is missing); name the plugin's socket with --endpoint", socket.display());
    }
    socket.to_str().context("the lab's directory is not valid UTF-8")?.parse().context("the lab's driver socket")
}
