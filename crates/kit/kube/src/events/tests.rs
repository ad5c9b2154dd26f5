use super::*;
use crate::fake::Fake;
use serde_json::Value;

fn claim() -> ObjectReference {
    ObjectReference {
        kind: Some("PersistentVolumeClaim".into()),
        api_version: Some("v1".into()),
        namespace: Some("ns".into()),
        name: Some("claim".into()),
        uid: Some("u-1".into()),
        ..ObjectReference::default()
    }
}

fn events(fake: &Fake) -> Vec<(String, Value)> {
    fake.lock().objects.clone().into_iter().collect()
}

#[tokio::test(start_paused = true)]
async fn an_event_has_the_form_of_client_go() {
    let fake = Fake::default();
    let recorder = Recorder::new(fake.client(), "prov", Some("node-1"));
    recorder.event(&claim(), EventType::Warning, "ProvisioningFailed", "no space");
    recorder.flush().await;
    let all = events(&fake);
    let (path, event) = &all[0];
    let name = path.strip_prefix("/api/v1/namespaces/ns/events/claim.").expect(path);
    assert!(i64::from_str_radix(name, 16).unwrap() > 1_600_000_000_000_000_000, "nanoseconds in hex: {name}");
    assert_eq!(event["involvedObject"]["uid"], "u-1");
    assert_eq!(event["source"], json!({"component": "prov", "host": "node-1"}));
    assert_eq!(event["reportingComponent"], "prov");
    assert_eq!(
        (&event["type"], &event["reason"], &event["message"]),
        (&json!("Warning"), &json!("ProvisioningFailed"), &json!("no space"))
    );
    assert_eq!(event["count"], 1);
    assert_eq!(event["firstTimestamp"], event["lastTimestamp"]);
}

#[tokio::test(start_paused = true)]
async fn repetitions_count_up_and_start_anew_when_the_event_is_gone() {
    let fake = Fake::default();
    let recorder = Recorder::new(fake.client(), "prov", None);
    for _ in 0..3 {
        recorder.event(&claim(), EventType::Normal, "R", "m");
    }
    recorder.event(&claim(), EventType::Normal, "R", "another");
    recorder.flush().await;
    let counts: Vec<_> = events(&fake).iter().map(|(_, event)| event["count"].as_i64().unwrap()).collect();
    assert_eq!(counts, [3, 1]);
    fake.lock().objects.clear();
    recorder.event(&claim(), EventType::Normal, "R", "m");
    recorder.flush().await;
    assert_eq!(events(&fake)[0].1["count"], 4);
}

#[tokio::test(start_paused = true)]
async fn cluster_scoped_objects_have_their_events_in_default() {
    let fake = Fake::default();
    let recorder = Recorder::new(fake.client(), "prov", None);
    let volume = ObjectReference { namespace: None, ..claim() };
    recorder.event(&volume, EventType::Normal, "R", "é".repeat(2000));
    recorder.flush().await;
    let all = events(&fake);
    assert!(all[0].0.starts_with("/api/v1/namespaces/default/events/"), "{}", all[0].0);
    let message = all[0].1["message"].as_str().unwrap();
    assert!(message.len() <= 1024 && message.ends_with("é..."));
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_cut_per_object() {
    let fake = Fake::default();
    let recorder = Recorder::new(fake.client(), "prov", None);
    let other = ObjectReference { uid: Some("u-2".into()), ..claim() };
    for n in 0..100 {
        recorder.event(&claim(), EventType::Normal, "R", format!("{n}"));
    }
    recorder.event(&other, EventType::Normal, "R", "m");
    recorder.flush().await;
    assert_eq!(events(&fake).len(), 26);
    tokio::time::advance(Duration::from_secs(301)).await;
    recorder.event(&claim(), EventType::Normal, "R", "late");
    recorder.flush().await;
    assert_eq!(events(&fake).len(), 27);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_final() {
    let fake = Fake::default();
    fake.lock().broken = true;
    let recorder = Recorder::new(fake.client(), "prov", None);
    recorder.event(&claim(), EventType::Normal, "R", "m");
    recorder.flush().await;
    assert_eq!(fake.lock().log.len(), 1);
}
