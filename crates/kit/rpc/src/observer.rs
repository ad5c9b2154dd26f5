//! Logging and measuring of calls.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor};
use tonic::{Code, Status};

use crate::metrics::{OperationsSeconds, code_name};
use crate::render::render;

/// Calls that Kubernetes components make all the time; they are logged at DEBUG.
const POLLED: [&str; 11] = [
    "Probe",
    "GetPluginInfo",
    "GetPluginCapabilities",
    "ControllerGetCapabilities",
    "GroupControllerGetCapabilities",
    "NodeGetCapabilities",
    "NodeGetInfo",
    "NodeGetVolumeStats",
    "GetCapacity",
    "ControllerGetVolume",
    "ListVolumes",
];

/// Numbers the calls of the process, so that the lines of concurrent ones can be told apart.
static CALLS: AtomicU64 = AtomicU64::new(1);

/// Logs unary calls with their requests and outcomes, without secrets, and measures them. Cheap to clone.
///
/// A call makes three lines, in the form of the Go CSI drivers: `GRPC call: <path>`, `GRPC request: {...}` and
/// `GRPC response: {...}` or `GRPC error: ...`; the field `call` joins them. See [`render`] for the form of messages. A call that polls, for instance `Probe`, is logged at DEBUG.
#[derive(Debug, Clone)]
pub struct Observer {
    pool: DescriptorPool,
    metrics: Option<OperationsSeconds>,
    quiet: bool,
}

impl Observer {
    /// An observer that finds the types of messages in `pool` and logs at INFO, as a server does.
    ///
    /// The pool must have been decoded from bytes that keep extension options
    /// ([`DescriptorPool::decode`]): they say which fields are secret.
    pub fn new(pool: DescriptorPool) -> Self {
        Self { pool, metrics: None, quiet: false }
    }

    /// Also records each call in `metrics`.
    #[must_use]
    pub fn with_metrics(mut self, metrics: OperationsSeconds) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Logs every call at DEBUG, errors too, as the clients in sidecars do: who called says what the error means.
    #[must_use]
    pub fn at_debug(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Awaits `call`, the outcome of `method` for `request`, and logs and measures it.
    ///
    /// `method` is the full path, for instance `/csi.v1.Controller/CreateVolume`. A call that is dropped half way is
    /// measured and logged as canceled.
    pub async fn unary<Req: Message, Res: Message>(
        &self,
        method: &'static str,
        request: &Req,
        call: impl Future<Output = Result<Res, Status>>,
    ) -> Result<Res, Status> {
        let number = CALLS.fetch_add(1, Ordering::Relaxed);
        let quiet = self.quiet || method.rsplit('/').next().is_some_and(|name| POLLED.contains(&name));
        let enabled =
            if quiet { tracing::enabled!(tracing::Level::DEBUG) } else { tracing::enabled!(tracing::Level::INFO) };
        let descriptor = if enabled { self.find(method) } else { None };
        if enabled {
            log(quiet, number, format_args!("GRPC call: {method}"));
            let text = text(descriptor.as_ref().map(MethodDescriptor::input), request);
            log(quiet, number, format_args!("GRPC request: {text}"));
        }
        let mut watch = Watch { observer: self, method, number, start: Instant::now(), done: false };
        let outcome = call.await;
        watch.done = true;
        watch.record(outcome.as_ref().map_or_else(Status::code, |_| Code::Ok));
        match &outcome {
            Ok(response) if enabled => {
                let text = text(descriptor.as_ref().map(MethodDescriptor::output), response);
                log(quiet, number, format_args!("GRPC response: {text}"));
            }
            Ok(_) => {}
            Err(status) => {
                let (code, text) = (code_name(status.code()), status.message());
                if self.quiet {
                    tracing::debug!(call = number, "GRPC error: {method}: rpc error: code = {code} desc = {text}");
                } else {
                    tracing::error!(call = number, "GRPC error: {method}: rpc error: code = {code} desc = {text}");
                }
            }
        }
        outcome
    }

    fn find(&self, method: &str) -> Option<MethodDescriptor> {
        let (service, name) = method.strip_prefix('/')?.split_once('/')?;
        let service = self.pool.get_service_by_name(service)?;
        service.methods().find(|method| method.name() == name)
    }
}

/// Records a call even if its future is dropped before it ends.
struct Watch<'a> {
    observer: &'a Observer,
    method: &'static str,
    number: u64,
    start: Instant,
    done: bool,
}

impl Watch<'_> {
    fn record(&self, code: Code) {
        if let Some(metrics) = &self.observer.metrics {
            metrics.observe(self.method, code, self.start.elapsed());
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.record(Code::Cancelled);
            let text = format_args!("GRPC error: {}: canceled before it ended", self.method);
            log(self.observer.quiet, self.number, text);
        }
    }
}

fn log(quiet: bool, call: u64, text: std::fmt::Arguments<'_>) {
    if quiet {
        tracing::debug!(call, "{text}");
    } else {
        tracing::info!(call, "{text}");
    }
}

/// The message as text. What has no known type is not shown at all: it might hold secrets.
fn text(descriptor: Option<MessageDescriptor>, message: &impl Message) -> String {
    descriptor
        .and_then(|descriptor| DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).ok())
        .map_or_else(|| "(of unknown type, not shown)".to_owned(), |message| render(&message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::tests::{Extension, pool, request};
    use serde_json::json;
    use std::io;
    use std::sync::{Arc, Mutex};

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

    /// Runs `f` with everything logged, TRACE too, and gives the log.
    fn logged(f: impl Future<Output = ()>) -> String {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .without_time()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tracing::subscriber::with_default(subscriber, || runtime.block_on(f));
        String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_call_is_three_lines_without_secrets() {
        let pool = pool(Extension::Declared);
        let make = request(&pool, json!({"name": "a", "secrets": {"k": "swordfish"}, "token": "opensesame"}));
        let log = logged(async {
            let observer = Observer::new(pool.clone());
            observer.unary("/demo.v1.Demo/Make", &make, async { Ok("ext4".to_owned()) }).await.unwrap();
            observer.unary("/demo.v1.Demo/Probe", &make, async { Ok(String::new()) }).await.unwrap();
            observer
                .unary("/demo.v1.Demo/Make", &make, async { Err::<String, _>(Status::not_found("no such thing")) })
                .await
                .unwrap_err();
            observer.unary("/demo.v1.Demo/Unheard", &make, async { Ok(String::new()) }).await.unwrap();
        });
        let lines: Vec<&str> = log.lines().map(str::trim_start).collect();
        assert!(lines[0].starts_with("INFO") && lines[0].contains("GRPC call: /demo.v1.Demo/Make"), "{log}");
        assert!(
            lines[1].contains(r#"GRPC request: {"name":"a","secrets":"***stripped***","token":"***stripped***"}"#),
            "{log}"
        );
        assert!(lines[2].contains(r#"GRPC response: {"fs_type":"ext4"}"#), "{log}");
        assert!(lines[3..6].iter().all(|line| line.starts_with("DEBUG")), "{log}");
        assert!(
            log.contains("GRPC error: /demo.v1.Demo/Make: rpc error: code = NotFound desc = no such thing"),
            "{log}"
        );
        assert!(log.contains("GRPC request: (of unknown type, not shown)"), "{log}");
        assert!(!log.contains("swordfish") && !log.contains("opensesame"), "{log}");
    }

    #[test]
    fn outcomes_are_measured_by_code() {
        let mut registry = prometheus_client::registry::Registry::default();
        let metrics = OperationsSeconds::register(&mut registry);
        metrics.set_driver_name("demo");
        let pool = pool(Extension::Declared);
        let make = request(&pool, json!({}));
        let observer = Observer::new(pool).with_metrics(metrics);
        logged(async {
            let ok = observer.unary("/demo.v1.Demo/Make", &make, async { Ok(String::new()) });
            ok.await.unwrap();
            let never = observer.unary("/demo.v1.Demo/Make", &make, std::future::pending::<Result<String, _>>());
            tokio::time::timeout(std::time::Duration::from_millis(1), never).await.unwrap_err();
        });
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for code in ["OK", "Canceled"] {
            let line = format!(
                "csi_sidecar_operations_seconds_count{{driver_name=\"demo\",method_name=\"/demo.v1.Demo/Make\",grpc_status_code=\"{code}\"}} 1"
            );
            assert!(text.contains(&line), "{text}");
        }
        assert!(text.contains("le=\"0.1\"") && text.contains("le=\"600.0\""), "{text}");
    }
}
