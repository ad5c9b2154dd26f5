//! Plugin and client over real sockets.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking, and say what they skip"
)]

#[path = "it/bad_input.rs"]
mod bad_input;
#[path = "it/toy.rs"]
mod toy;

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bad_input::{BAD, To};
use futures_util::{StreamExt as _, TryStreamExt as _};
use outrigger_csi::proto::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
use outrigger_csi::{
    Class, Client, ControllerCapability, Endpoint, JsonError, NodeCapability, Plugin, PluginService, ServeError,
    StartError, VolumeExpansion, call_json, proto, request_template, rpc_names,
};
use serde_json::{Value as Json, json};
use tonic::{Code, Request, Response, Status};
use toy::{DEADLINE, Serving, Toy, full, plain};

fn create(name: &str) -> proto::CreateVolumeRequest {
    let capability = proto::VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    };
    proto::CreateVolumeRequest { name: name.into(), volume_capabilities: vec![capability], ..Default::default() }
}

/// Puts N letters in the place of `{a*N}`.
fn expand(text: &str) -> String {
    let mut parts = text.split("{a*");
    let mut expanded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (count, rest) = part.split_once('}').unwrap();
        expanded.push_str(&"a".repeat(count.parse().unwrap()));
        expanded.push_str(rest);
    }
    expanded
}

fn status(error: JsonError) -> Status {
    match error {
        JsonError::Call(error) => error.status,
        other => panic!("not refused by the plugin: {other}"),
    }
}

#[tokio::test]
async fn bad_requests_are_refused_with_what_is_wrong() {
    let toy = Arc::new(Toy::default());
    let (all, few) = (Serving::start(full(&toy)).await, Serving::start(plain(&toy)).await);
    let mut differences = Vec::new();
    for (index, (to, rpc, request, code, message)) in BAD.iter().enumerate() {
        let client = if *to == To::Full { &all.client } else { &few.client };
        match call_json(client, rpc, &expand(request), DEADLINE).await {
            Ok(answer) => differences.push(format!("{index} {rpc} {request}: answered {answer}")),
            Err(error) => {
                let status = status(error);
                assert!(status.details().is_empty());
                if (status.code(), status.message()) != (*code, message) {
                    let got = (status.code(), status.message());
                    differences.push(format!("{index} {rpc} {request}:\n  {got:?} is not\n  {:?}", (code, message)));
                }
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(toy.volumes.lock().unwrap().is_empty());
}

#[tokio::test]
async fn limits_are_met_exactly() {
    let toy = Arc::new(Toy::default());
    let serving = Serving::start(full(&toy)).await;
    let mut request = create(&format!("{}\t\n\r\u{e9}", "n".repeat(123)));
    request.parameters.insert("k".into(), "v".repeat(4095));
    let volume = serving.client.create_volume(request, DEADLINE).await.unwrap().volume.unwrap();
    assert_eq!(volume.volume_id.len(), 128);
    let unpublish = proto::ControllerUnpublishVolumeRequest {
        volume_id: "v".into(),
        node_id: "n".repeat(256),
        ..Default::default()
    };
    serving.client.controller_unpublish_volume(unpublish, DEADLINE).await.unwrap();
    // A volume that is defined in a pod is never staged.
    let inline = r#"{"volume_id": "v", "target_path": "/t", "volume_context": {"csi.storage.k8s.io/ephemeral": "true"},
        "volume_capability": {"mount": {}, "access_mode": {"mode": 1}}}"#;
    call_json(&serving.client, "node-publish-volume", inline, DEADLINE).await.unwrap();
    let unpublish =
        proto::NodeUnpublishVolumeRequest { volume_id: "v".into(), target_path: format!("/{}", "p".repeat(4094)) };
    serving.client.node_unpublish_volume(unpublish, DEADLINE).await.unwrap();
}

#[tokio::test]
async fn whole_secrets_and_the_tokens_of_pods_are_taken() {
    let toy = Arc::new(Toy::default());
    let serving = Serving::start(full(&toy)).await;
    let secrets = r#""secrets": {"tls.crt": "{a*100000}", "tls.key": "{a*4096}"}"#;
    let create = format!(
        r#"{{"name": "n", "volume_capabilities": [{{"mount": {{}}, "access_mode": {{"mode": 1}}}}], {secrets}}}"#
    );
    call_json(&serving.client, "create-volume", &expand(&create), DEADLINE).await.unwrap();
    let publish = r#"{"volume_id": "v", "target_path": "/t", "staging_target_path": "/s",
        "volume_capability": {"mount": {}, "access_mode": {"mode": 1}},
        "volume_context": {"k": "{a*4095}", "csi.storage.k8s.io/pod.name": "p",
                           "csi.storage.k8s.io/serviceAccount.tokens": "{a*9000}"}}"#;
    call_json(&serving.client, "node-publish-volume", &expand(publish), DEADLINE).await.unwrap();
}

#[tokio::test]
async fn wrong_answers_are_errors_that_fit_what_was_done() {
    let toy = Arc::new(Toy::default());
    let serving = Serving::start(full(&toy)).await;
    let capability = json!({"mount": {}, "access_mode": {"mode": 1}});
    let create = |name: &str| {
        json!({"name": name, "volume_capabilities": [capability], "capacity_range": {"required_bytes": 5},
               "volume_content_source": {"volume": {"volume_id": "v"}}})
    };
    let publish = json!({"volume_id": "wrong-context", "node_id": "n", "volume_capability": capability});
    let expand = json!({"volume_id": "wrong-size", "capacity_range": {"required_bytes": 5}});
    for (rpc, request, problem) in [
        ("create-volume", create("wrong-id"), "volume_id is empty"),
        ("create-volume", create("wrong-size"), "capacity_bytes 1 is less than the required 5"),
        ("create-volume", create("wrong-source"), "content_source is not the request's volume_content_source"),
        ("create-volume", create("wrong-place"), "accessible_topology has the ill-formed key \"not a key\""),
        ("controller-publish-volume", publish, "publish_context has 5006 bytes"),
        ("create-snapshot", json!({"name": "wrong-time", "source_volume_id": "v"}), "creation_time is missing"),
        ("create-snapshot", json!({"name": "wrong-volume", "source_volume_id": "v"}), "source_volume_id is \"other\""),
        ("list-snapshots", json!({"source_volume_id": "wrong-filter"}), "source_volume_id is \"another\""),
        ("list-snapshots", json!({"source_volume_id": "wrong-count", "max_entries": 2}), "there are 3 entries"),
        ("controller-expand-volume", expand, "capacity_bytes 4 is less than the required 5"),
        (
            "create-volume-group-snapshot",
            json!({"name": "wrong-members", "source_volume_ids": ["a", "b"]}),
            "the members are not one snapshot of each of source_volume_ids",
        ),
        (
            "node-get-volume-stats",
            json!({"volume_id": "UNKNOWN", "volume_path": "/v"}),
            "an entry of usage has no unit",
        ),
        ("get-metadata-allocated", json!({"snapshot_id": "wrong-order"}), "begins before the end of the one before"),
    ] {
        let status = status(call_json(&serving.client, rpc, &request.to_string(), DEADLINE).await.unwrap_err());
        // After INTERNAL the caller would take for granted that nothing was made, and never delete it.
        let changes = ["create-", "controller-"].iter().any(|prefix| rpc.starts_with(prefix));
        assert_eq!(status.code(), if changes { Code::Unavailable } else { Code::Internal }, "{rpc}: {status:?}");
        assert!(status.message().starts_with("the driver's answer is wrong: "), "{rpc}: {status:?}");
        assert!(status.message().contains(problem), "{rpc}: {status:?}");
    }
}

#[tokio::test]
async fn one_operation_at_a_time_on_a_volume() {
    let toy = Arc::new(Toy::default());
    let serving = Serving::start(full(&toy)).await;
    let client = serving.client.clone();
    let first = tokio::spawn({
        let client = client.clone();
        async move { client.create_volume(create("slow"), DEADLINE).await }
    });
    toy.began.notified().await;
    let error = client.create_volume(create("slow"), DEADLINE).await.unwrap_err();
    assert_eq!(error.code(), Code::Aborted);
    assert_eq!(error.status.message(), "an operation for volume \"slow\" is already in progress: try again later");
    assert_eq!(error.class(), Class::Uncertain);
    client.create_volume(create("other"), DEADLINE).await.unwrap();
    toy.release.notify_one();
    first.await.unwrap().unwrap();

    // The controller's operations do not wait for the node's.
    let publish = tokio::spawn({
        let client = client.clone();
        let request = json!({"volume_id": "slow", "staging_target_path": "/s", "target_path": "/t",
            "volume_capability": {"block": {}, "access_mode": {"mode": 1}}});
        async move { call_json(&client, "node-publish-volume", &request.to_string(), DEADLINE).await }
    });
    toy.began.notified().await;
    let unpublish = proto::NodeUnpublishVolumeRequest { volume_id: "slow".into(), target_path: "/t".into() };
    assert_eq!(client.node_unpublish_volume(unpublish, DEADLINE).await.unwrap_err().code(), Code::Aborted);
    let expand = r#"{"volume_id": "slow", "capacity_range": {"required_bytes": 1}}"#;
    call_json(&client, "controller-expand-volume", expand, DEADLINE).await.unwrap();
    toy.release.notify_one();
    publish.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_operation_outlives_its_caller() {
    let toy = Arc::new(Toy::default());
    let serving = Serving::start(full(&toy)).await;
    let client = serving.client.clone();
    let late = client.create_volume(create("slow-1"), Duration::from_millis(100)).await.unwrap_err();
    assert_eq!((late.code(), late.class()), (Code::DeadlineExceeded, Class::Uncertain));
    // The caller has gone, the operation has not: it keeps its lock.
    assert_eq!(client.create_volume(create("slow-1"), DEADLINE).await.unwrap_err().code(), Code::Aborted);

    // A server that is asked to stop waits for it.
    let stopped = serving.stop();
    drop(client);
    assert!(!stopped.is_finished() && toy.ended.lock().unwrap().is_empty());
    toy.release.notify_one();
    stopped.await.unwrap().unwrap();
    assert_eq!(*toy.ended.lock().unwrap(), ["slow-1"]);
    assert!(toy.volumes.lock().unwrap().contains_key("slow-1"));
}

#[tokio::test]
async fn a_caller_that_says_nothing_does_not_keep_the_plugin_from_ending() {
    let serving = Serving::start(plain(&Arc::new(Toy::default()))).await;
    let _silent = tokio::net::UnixStream::connect(serving.endpoint.path()).await.unwrap();
    // Connections are accepted in their order: the silent one was, when this one is answered.
    let second = Client::connect(&serving.endpoint, DEADLINE).await.unwrap();
    second.probe(proto::ProbeRequest {}, DEADLINE).await.unwrap();
    let path = serving.endpoint.path().to_owned();
    tokio::time::timeout(DEADLINE, serving.stop()).await.expect("it ends").unwrap().unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn a_panic_leaves_the_outcome_open_and_frees_the_volume() {
    let toy = Arc::new(Toy::default());
    let serving = Serving::start(full(&toy)).await;
    for _ in 0..2 {
        let error = serving.client.create_volume(create("panic"), DEADLINE).await.unwrap_err();
        assert_eq!((error.code(), error.class()), (Code::Unavailable, Class::Uncertain));
        assert_eq!(error.status.message(), "the driver panicked in /csi.v1.Controller/CreateVolume: see its log");
    }
    let request = proto::GetMetadataAllocatedRequest { snapshot_id: "panic-later".into(), ..Default::default() };
    let messages = serving.client.get_metadata_allocated(request, DEADLINE).await.unwrap();
    let messages: Vec<_> = messages.collect().await;
    assert_eq!(messages.len(), 3);
    assert_eq!(messages[2].as_ref().unwrap_err().code(), Code::Unavailable);
    serving.client.create_volume(create("fine"), DEADLINE).await.unwrap();
}

#[tokio::test]
async fn capabilities_are_what_was_registered() {
    let toy = Arc::new(Toy::default());
    for plugin in [full(&toy), plain(&toy), Plugin::new(toy.clone()), Plugin::new(toy.clone()).node(toy.clone())] {
        let advertised = plugin.capabilities();
        let serving = Serving::start(plugin).await;
        assert_eq!(serving.client.capabilities(DEADLINE).await.unwrap(), advertised);
    }
    let capabilities = full(&toy).capabilities();
    assert_eq!(capabilities.iter().count(), 4 + 1 + 15 + 1 + 6);
    assert!(capabilities.has(VolumeExpansion::Online) && capabilities.has(NodeCapability::VolumeMountGroup));
    let info = Serving::start(plain(&toy)).await.client.plugin_info(DEADLINE).await.unwrap();
    assert_eq!((info.name.as_str(), info.vendor_version.as_str()), ("toy.example.org", "1.2.3"));
    assert_eq!(info.manifest["commit"], "abc");
}

#[tokio::test]
async fn a_contradiction_is_found_before_the_socket_is_bound() {
    let toy = Arc::new(Toy::default());
    let directory = tempfile::tempdir().unwrap();
    let endpoint: Endpoint = directory.path().join("csi.sock").display().to_string().parse().unwrap();
    let plugin = Plugin::new(toy.clone()).create_delete_volume(toy);
    let error = plugin.serve(&endpoint, std::future::pending()).await.unwrap_err();
    let expected = StartError::Needs { part: "create_delete_volume", needs: "controller" };
    assert!(matches!(error, ServeError::Start(error) if error == expected));
    assert!(!endpoint.path().exists());
}

#[tokio::test]
async fn listings_come_in_pages() {
    let toy = Arc::new(Toy::default());
    let serving = Serving::start(full(&toy)).await;
    for n in 0..10 {
        serving.client.create_volume(create(&format!("v{n}")), DEADLINE).await.unwrap();
    }
    let mut seen = Vec::new();
    let mut request = proto::ListVolumesRequest { max_entries: 3, ..Default::default() };
    loop {
        let page = serving.client.list_volumes(request.clone(), DEADLINE).await.unwrap();
        assert!(page.entries.len() <= 3);
        seen.extend(page.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id));
        // What the page ended with goes away, and something else comes.
        let last = proto::DeleteVolumeRequest { volume_id: seen.last().unwrap().clone(), ..Default::default() };
        serving.client.delete_volume(last, DEADLINE).await.unwrap();
        serving.client.create_volume(create("a-newcomer"), DEADLINE).await.unwrap();
        if page.next_token.is_empty() {
            break;
        }
        request.starting_token = page.next_token;
    }
    assert_eq!(seen, (0..10).map(|n| format!("v{n}")).collect::<Vec<_>>());
    request.starting_token = "not one of ours".into();
    assert_eq!(serving.client.list_volumes(request, DEADLINE).await.unwrap_err().code(), Code::Aborted);
}

#[tokio::test]
async fn streams_arrive_message_by_message() {
    let toy = Arc::new(Toy::default());
    let serving = Serving::start(full(&toy)).await;
    let request = proto::GetMetadataAllocatedRequest { snapshot_id: "s".into(), ..Default::default() };
    let messages = serving.client.get_metadata_allocated(request, DEADLINE).await.unwrap();
    let messages: Vec<_> = messages.try_collect().await.unwrap();
    let offsets: Vec<_> = messages.iter().map(|message| message.block_metadata[0].byte_offset).collect();
    assert_eq!(offsets, [0, 10, 20]);
    let lines =
        call_json(&serving.client, "get-metadata-allocated", r#"{"snapshot_id": "s"}"#, DEADLINE).await.unwrap();
    assert_eq!(lines.lines().count(), 3);
    let first: Json = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(first["block_metadata_type"], "FIXED_LENGTH");
    assert_eq!(first["volume_capacity_bytes"], 100);
    let request = r#"{"base_snapshot_id": "a", "target_snapshot_id": "b"}"#;
    let error = call_json(&serving.client, "get-metadata-delta", request, DEADLINE).await.unwrap_err();
    assert_eq!(status(error).code(), Code::FailedPrecondition);
}

/// A request of a later version of the specification: it has a field more.
#[derive(Clone, PartialEq, prost::Message)]
struct CreateSnapshotRequestLater {
    #[prost(string, tag = "1")]
    source_volume_id: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, optional, tag = "5")]
    accessibility_requirements: Option<proto::TopologyRequirement>,
    #[prost(string, tag = "99")]
    unheard: String,
}

#[tokio::test]
async fn later_versions_of_the_specification_are_understood() {
    let toy = Arc::new(Toy::default());
    let serving = Serving::start(full(&toy)).await;
    let channel = outrigger_rpc::connect(&serving.endpoint, DEADLINE).await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let request = CreateSnapshotRequestLater {
        source_volume_id: "v".into(),
        name: "s".into(),
        accessibility_requirements: Some(proto::TopologyRequirement::default()),
        unheard: "x".repeat(1000),
    };
    let codec = tonic_prost::ProstCodec::<_, proto::CreateSnapshotResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/csi.v1.Controller/CreateSnapshot");
    let answer = grpc.unary(Request::new(request), path, codec).await.unwrap().into_inner();
    assert_eq!(answer.snapshot.unwrap().snapshot_id, "s");
}

/// A plugin that was not made with this SDK: of a later version, slow to get ready, without a controller here.
#[derive(Clone, Default)]
struct Foreign(Arc<AtomicUsize>);

#[tonic::async_trait]
impl proto::identity_server::Identity for Foreign {
    async fn get_plugin_info(
        &self,
        _: Request<proto::GetPluginInfoRequest>,
    ) -> Result<Response<proto::GetPluginInfoResponse>, Status> {
        Err(Status::internal("broken"))
    }
    async fn get_plugin_capabilities(
        &self,
        _: Request<proto::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<proto::GetPluginCapabilitiesResponse>, Status> {
        let service = |number| proto::PluginCapability {
            r#type: Some(proto::plugin_capability::Type::Service(proto::plugin_capability::Service { r#type: number })),
        };
        Ok(Response::new(proto::GetPluginCapabilitiesResponse {
            capabilities: vec![service(1), service(5), proto::PluginCapability { r#type: None }],
        }))
    }
    async fn probe(&self, _: Request<proto::ProbeRequest>) -> Result<Response<proto::ProbeResponse>, Status> {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            0 => Ok(Response::new(proto::ProbeResponse { ready: Some(false) })),
            1 => Ok(Response::new(proto::ProbeResponse { ready: None })),
            _ => Err(Status::failed_precondition("the disk is missing")),
        }
    }
}

#[tokio::test]
async fn foreign_plugins_are_understood() {
    let directory = tempfile::tempdir().unwrap();
    let endpoint: Endpoint = directory.path().join("csi.sock").display().to_string().parse().unwrap();
    let listener = outrigger_rpc::Listener::bind(&endpoint).await.unwrap();
    let probes = Foreign::default();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tonic::transport::Server::builder()
        .add_service(proto::identity_server::IdentityServer::new(probes.clone()))
        .serve_with_incoming_shutdown(listener.incoming(), async { stopped.await.unwrap_or_default() });
    let server = tokio::spawn(server);
    let client = Client::connect(&endpoint, DEADLINE).await.unwrap();
    client.wait_ready().await.unwrap();
    assert_eq!(probes.0.load(Ordering::Relaxed), 2);
    assert_eq!(client.wait_ready().await.unwrap_err().code(), Code::FailedPrecondition);
    let capabilities = client.capabilities(DEADLINE).await.unwrap();
    assert_eq!(capabilities, [PluginService::ControllerService].into_iter().collect());
    assert!(!capabilities.has(ControllerCapability::CreateDeleteVolume));
    let error = client.plugin_info(DEADLINE).await.unwrap_err();
    assert_eq!((error.class(), error.infeasible()), (Class::Final, false));
    assert_eq!(error.to_string(), "/csi.v1.Identity/GetPluginInfo: Internal: broken");

    // Nobody there: nothing is known about what happened to the call.
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
    let error = client.plugin_info(DEADLINE).await.unwrap_err();
    assert_eq!(error.class(), Class::Uncertain, "{error:?}");
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Everything that is logged by this process, at any level and by any library.
fn log() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(|| {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone());
        subscriber.init();
        log
    })
}

/// Fills the gaps of a template, so that the toy accepts it.
fn fill(value: &mut Json) {
    match value {
        Json::Array(list) => list.iter_mut().for_each(fill),
        Json::Object(object) => {
            for (name, value) in object {
                match value {
                    Json::String(text) if text.is_empty() => {
                        *value = if name.ends_with("_path") { "/x".into() } else { "x".into() };
                    }
                    Json::Number(_) if name == "required_bytes" || name == "limit_bytes" => *value = 1.into(),
                    Json::String(_) if name == "starting_token" => *value = "".into(),
                    other => fill(other),
                }
            }
        }
        _ => {}
    }
}

#[tokio::test]
async fn secrets_never_reach_the_logs() {
    const SECRET: &str = "swordfish";
    let toy = Arc::new(Toy::default());
    let log = log();
    let serving = Serving::start(full(&toy)).await;
    let mut checked = Vec::new();
    for name in rpc_names() {
        let mut request: Json = serde_json::from_str(&request_template(name.rpc).unwrap()).unwrap();
        if request.get("secrets").is_none() {
            continue;
        }
        let bad = json!({"secrets": {SECRET: SECRET}}).to_string();
        fill(&mut request);
        request["secrets"] = json!({SECRET: SECRET});
        if request.get("starting_token").is_some() {
            request["starting_token"] = "".into();
        }
        for request in [request.to_string(), bad] {
            if let Err(error) = call_json(&serving.client, &name.kebab(), &request, DEADLINE).await {
                assert!(!format!("{error} {error:?}").contains(SECRET), "{error}");
            }
        }
        checked.push(name.rpc);
    }
    // Fields that are marked secret, by the descriptor.
    let mark = proto::descriptor_pool().get_extension_by_name("csi.v1.csi_secret").unwrap();
    let marked = proto::descriptor_pool().all_messages().flat_map(|message| message.fields().collect::<Vec<_>>());
    let marked = marked.filter(|field| field.options().get_extension(&mark).as_bool() == Some(true)).count();
    assert_eq!((checked.len(), marked), (marked, 19));

    let mut typed = create("v");
    typed.secrets.insert(SECRET.into(), SECRET.into());
    assert!(format!("{typed:?}").contains("secrets: ***stripped***"), "{typed:?}");
    assert!(!format!("{typed:#?}").contains(SECRET));
    serving.client.create_volume(typed, DEADLINE).await.unwrap();

    let text = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(!text.contains(SECRET), "{}", text.lines().find(|line| line.contains(SECRET)).unwrap_or_default());
    for rpc in checked {
        let call = text
            .lines()
            .filter(|line| line.contains("GRPC call: ") && format!("{line} ").contains(&format!("/{rpc} ")));
        assert!(call.count() >= 2, "{rpc} is not logged");
    }
    assert!(text.contains("GRPC request: ") && text.contains("***stripped***"));
}
