//! What a table says of a Pod: its status in one word.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::cells::{NONE, age, condition, flag, int, joined, list, name, since, text, text_or};

/// The cells: Name, Ready, Status, Restarts, Age, IP, Node, Nominated Node, Readiness Gates.
pub(super) fn pod(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = Summary::of(pod, now);
    let ips = list(&pod["status"]["podIPs"]);
    let ip = ips.first().map_or_else(|| text_or(&pod["status"]["podIP"], NONE), |ip| text_or(&ip["ip"], NONE));
    let gates = list(&pod["spec"]["readinessGates"]);
    let gates_met = gates.iter().filter(|g| condition(pod, text(&g["conditionType"])) == Some("True")).count();
    vec![
        name(pod),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        summary.restarts.into(),
        age(pod, now),
        ip.into(),
        text_or(&pod["spec"]["nodeName"], NONE).into(),
        text_or(&pod["status"]["nominatedNodeName"], NONE).into(),
        if gates.is_empty() { NONE.to_owned() } else { format!("{gates_met}/{}", gates.len()) }.into(),
    ]
}

struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: String,
}

/// Restart counts and the newest end of a container, gathered over some containers.
#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<String>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += int(&status["restartCount"]);
        if let Some(at) = status["lastState"]["terminated"]["finishedAt"].as_str() {
            // RFC 3339 in UTC with whole seconds sorts as text.
            if self.last.as_deref().is_none_or(|last| last < at) {
                self.last = Some(at.to_owned());
            }
        }
    }

    fn show(&self, now: Timestamp) -> String {
        match &self.last {
            Some(at) if self.count > 0 => format!("{} ({} ago)", self.count, text(&since(&json!(at), now))),
            _ => self.count.to_string(),
        }
    }
}

impl Summary {
    fn of(pod: &Value, now: Timestamp) -> Self {
        let status = &pod["status"];
        let spec = &pod["spec"];
        let mut reason = text_or(&status["reason"], text(&status["phase"])).to_owned();
        let gated =
            list(&status["conditions"]).iter().any(|c| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated");
        if gated {
            "SchedulingGated".clone_into(&mut reason);
        }
        let mut total = list(&spec["containers"]).len();
        let mut ready = 0;
        let mut init_restarts = Restarts::default();
        let mut sidecar_restarts = Restarts::default();
        let init_specs = list(&spec["initContainers"]);
        let restartable = |n: &str| init_specs.iter().any(|c| text(&c["name"]) == n && c["restartPolicy"] == "Always");
        total += init_specs.iter().filter(|c| c["restartPolicy"] == "Always").count();

        let mut initializing = false;
        for (i, container) in list(&status["initContainerStatuses"]).iter().enumerate() {
            let sidecar = restartable(text(&container["name"]));
            init_restarts.add(container);
            if sidecar {
                sidecar_restarts.add(container);
                ready += usize::from(flag(&container["ready"]) && !container["state"]["running"].is_null());
            }
            let terminated = &container["state"]["terminated"];
            let waiting = text(&container["state"]["waiting"]["reason"]);
            if (!terminated.is_null() && int(&terminated["exitCode"]) == 0) || (sidecar && flag(&container["started"]))
            {
                continue;
            }
            reason = if !terminated.is_null() {
                format!("Init:{}", exit_reason(terminated))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{i}/{}", init_specs.len())
            };
            initializing = true;
            break;
        }

        let mut restarts = init_restarts;
        if !initializing || condition(pod, "Initialized") == Some("True") {
            restarts = sidecar_restarts;
            let mut running = false;
            for container in list(&status["containerStatuses"]).iter().rev() {
                restarts.add(container);
                let state = &container["state"];
                if !text(&state["waiting"]["reason"]).is_empty() {
                    text(&state["waiting"]["reason"]).clone_into(&mut reason);
                } else if !state["terminated"].is_null() {
                    reason = exit_reason(&state["terminated"]);
                } else if flag(&container["ready"]) && !state["running"].is_null() {
                    running = true;
                    ready += 1;
                }
            }
            // One container is done while another still runs: the pod as a whole is alive.
            if reason == "Completed" && running {
                let word = if condition(pod, "Ready") == Some("True") { "Running" } else { "NotReady" };
                word.clone_into(&mut reason);
            }
        }

        if !pod["metadata"]["deletionTimestamp"].is_null() {
            if status["reason"] == "NodeLost" {
                "Unknown".clone_into(&mut reason);
            } else if !matches!(text(&status["phase"]), "Succeeded" | "Failed") {
                "Terminating".clone_into(&mut reason);
            }
        }
        Self { ready, total, reason, restarts: restarts.show(now) }
    }
}

/// The word for how a container ended.
fn exit_reason(terminated: &Value) -> String {
    let reason = text(&terminated["reason"]);
    if !reason.is_empty() {
        reason.to_owned()
    } else if int(&terminated["signal"]) != 0 {
        format!("Signal:{}", int(&terminated["signal"]))
    } else {
        format!("ExitCode:{}", int(&terminated["exitCode"]))
    }
}

/// The row conditions of a finished Pod; clients leave such rows out or grey.
pub(super) fn row_conditions(object: &Value) -> Option<Value> {
    if object["kind"] != "Pod" || object["apiVersion"] != "v1" {
        return None;
    }
    let message = match text(&object["status"]["phase"]) {
        "Succeeded" => "The pod has completed successfully.",
        "Failed" => "The pod failed.",
        _ => return None,
    };
    let reason = &object["status"]["phase"];
    Some(json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]))
}

/// The cells of a PodTemplate: Name, Containers, Images, Pod Labels.
pub(super) fn pod_template(object: &Value, _: Timestamp) -> Vec<Value> {
    let template = &object["template"];
    let column = |field: &str| joined(list(&template["spec"]["containers"]).iter().map(|c| text(&c[field])));
    vec![
        name(object),
        column("name").into(),
        column("image").into(),
        super::cells::labels(&template["metadata"]["labels"]).into(),
    ]
}
