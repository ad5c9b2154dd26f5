//! Lists and watches: snapshots, pages, revisions, selectors, bookmarks.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::lab::{CM, Lab, MERGE};

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().expect("items");
    items.iter().map(|item| item["metadata"]["name"].as_str().expect("a name").to_owned()).collect()
}

fn revision(value: &Value) -> u64 {
    value["metadata"]["resourceVersion"].as_str().expect("a revision").parse().expect("a number")
}

#[tokio::test]
async fn pages_show_one_snapshot_while_others_write() {
    let lab = Lab::start().await;
    for index in 0..10 {
        lab.config_map(&format!("c{index}"), "1").await;
    }
    let first = lab.get(&format!("{CM}?limit=3")).await.expect(200);
    assert_eq!(first["metadata"]["remainingItemCount"], 7);
    assert_eq!((&first["kind"], &first["apiVersion"]), (&json!("ConfigMapList"), &json!("v1")));
    lab.delete(&format!("{CM}/c5")).await.expect(200);
    lab.config_map("c55", "1").await;
    let mut seen = names(&first);
    let mut token = first["metadata"]["continue"].as_str().expect("more").to_owned();
    loop {
        let page = lab.get(&format!("{CM}?limit=3&continue={token}")).await.expect(200);
        assert_eq!(revision(&page), revision(&first));
        seen.extend(names(&page));
        match page["metadata"]["continue"].as_str() {
            Some(next) => next.clone_into(&mut token),
            None => break,
        }
    }
    assert_eq!(seen, (0..10).map(|index| format!("c{index}")).collect::<Vec<_>>());
    // With a selector, a page is as full as it can be and tells nothing of the rest.
    lab.patch(&format!("{CM}/c1"), MERGE, &json!({"metadata": {"labels": {"x": "y"}}})).await.expect(200);
    lab.patch(&format!("{CM}/c9"), MERGE, &json!({"metadata": {"labels": {"x": "y"}}})).await.expect(200);
    let page = lab.get(&format!("{CM}?limit=1&labelSelector=x%3Dy")).await.expect(200);
    assert_eq!(names(&page), ["c1"]);
    assert!(page["metadata"].get("remainingItemCount").is_none());
    let token = page["metadata"]["continue"].as_str().expect("more");
    assert_eq!(
        names(&lab.get(&format!("{CM}?limit=1&labelSelector=x%3Dy&continue={token}")).await.expect(200)),
        ["c9"]
    );
}

#[tokio::test]
async fn expired_pages_and_revisions_are_410_with_a_way_on() {
    let lab = Lab::with(|options| options.history = 20).await;
    for index in 0..4 {
        lab.config_map(&format!("c{index}"), "1").await;
    }
    let first = lab.get(&format!("{CM}?limit=2")).await.expect(200);
    let old = revision(&first);
    for index in 0..100 {
        lab.patch(&format!("{CM}/c0"), MERGE, &json!({"data": {"k": index.to_string()}})).await.expect(200);
    }
    let token = first["metadata"]["continue"].as_str().expect("more");
    let status = lab.get(&format!("{CM}?limit=2&continue={token}")).await.fails(410, "Expired");
    let token = status["metadata"]["continue"].as_str().expect("an inconsistent token");
    assert_eq!(names(&lab.get(&format!("{CM}?limit=2&continue={token}")).await.expect(200)), ["c2", "c3"]);
    lab.get(&format!("{CM}?resourceVersion={old}&resourceVersionMatch=Exact")).await.fails(410, "Expired");
    // A watch answers 200 and says it in the stream.
    let mut events = lab.watch(&format!("{CM}?watch=true&resourceVersion={old}")).await;
    let event = events.next().await.expect("an event");
    assert_eq!(
        (&event["type"], &event["object"]["code"], &event["object"]["reason"]),
        (&json!("ERROR"), &json!(410), &json!("Expired"))
    );
    assert!(event["object"]["message"].as_str().expect("text").contains("too old resource version"));
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn the_revision_parameters_mean_what_they_say() {
    let lab = Lab::start().await;
    let first = lab.config_map("a", "1").await;
    lab.config_map("b", "1").await;
    let at = revision(&first);
    let exact = lab.get(&format!("{CM}?resourceVersion={at}&resourceVersionMatch=Exact")).await.expect(200);
    assert_eq!((names(&exact), revision(&exact)), (vec!["a".to_owned()], at));
    assert_eq!(
        names(&lab.get(&format!("{CM}?resourceVersion={at}&resourceVersionMatch=NotOlderThan")).await.expect(200)),
        ["a", "b"]
    );
    assert_eq!(names(&lab.get(&format!("{CM}?resourceVersion={at}")).await.expect(200)), ["a", "b"]);
    assert_eq!(names(&lab.get(&format!("{CM}?resourceVersion=0&limit=500")).await.expect(200)), ["a", "b"]);
    lab.get(&format!("{CM}?resourceVersion=abc")).await.fails(400, "BadRequest");
    lab.get(&format!("{CM}?resourceVersionMatch=Exact")).await.fails(422, "Invalid");
    lab.get(&format!("{CM}?continue=garbage")).await.fails(400, "BadRequest");
    lab.get(&format!("{CM}?sendInitialEvents=true")).await.fails(422, "Invalid");
    let status = lab
        .get(&format!("{CM}?resourceVersion={}&resourceVersionMatch=NotOlderThan", at + 1000))
        .await
        .fails(504, "Timeout");
    assert_eq!(status["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    assert_eq!(status["details"]["retryAfterSeconds"], 1);
}

#[tokio::test]
async fn selectors_select_and_bad_ones_are_refused() {
    let lab = Lab::start().await;
    for (name, labels) in [("a", json!({"x": "1"})), ("b", json!({"x": "2", "y": ""})), ("c", json!({}))] {
        lab.post(CM, &json!({"metadata": {"name": name, "labels": labels}})).await.expect(201);
    }
    for (query, expected) in [
        ("labelSelector=x%3D1", vec!["a"]),
        ("labelSelector=x%3D%3D1", vec!["a"]),
        ("labelSelector=x!%3D1", vec!["b", "c"]),
        ("labelSelector=x+in+(1,2),y", vec!["b"]),
        ("labelSelector=x+notin+(1)", vec!["b", "c"]),
        ("labelSelector=!x", vec!["c"]),
        ("fieldSelector=metadata.name%3Db", vec!["b"]),
        ("fieldSelector=metadata.name!%3Db", vec!["a", "c"]),
        ("fieldSelector=metadata.name%3Db&labelSelector=x%3D1", vec![]),
        ("fieldSelector=metadata.namespace%3Dother", vec![]),
    ] {
        assert_eq!(names(&lab.get(&format!("{CM}?{query}")).await.expect(200)), expected, "{query}");
    }
    for query in
        ["labelSelector=x+in", "labelSelector=a%3Db%3Dc", "fieldSelector=data.k%3Dx", "fieldSelector=metadata.name"]
    {
        lab.get(&format!("{CM}?{query}")).await.fails(400, "BadRequest");
    }
    let status = lab.get(&format!("{CM}?fieldSelector=data.k%3Dx")).await.json();
    assert!(status["message"].as_str().expect("text").contains("data.k"));
    assert_eq!(names(&lab.get("/api/v1/configmaps?fieldSelector=metadata.name%3Da").await.expect(200)), ["a"]);
    let namespaces = lab.get("/api/v1/namespaces?fieldSelector=status.phase%3DActive").await.expect(200);
    assert_eq!(names(&namespaces).len(), 4);
}

#[tokio::test]
async fn a_watch_continues_a_list_without_gap() {
    let lab = Lab::start().await;
    lab.config_map("a", "1").await;
    let list = lab.get(CM).await.expect(200);
    let b = lab.config_map("b", "1").await;
    let changed = lab.patch(&format!("{CM}/a"), MERGE, &json!({"data": {"k": "2"}})).await.expect(200);
    lab.delete(&format!("{CM}/b")).await.expect(200);
    let mut events = lab.watch(&format!("{CM}?watch=true&resourceVersion={}", revision(&list))).await;
    let added = events.next().await.expect("an event");
    assert_eq!((&added["type"], &added["object"]), (&json!("ADDED"), &b));
    let modified = events.next().await.expect("an event");
    assert_eq!((&modified["type"], &modified["object"]), (&json!("MODIFIED"), &changed));
    let deleted = events.next().await.expect("an event");
    assert_eq!(deleted["type"], "DELETED");
    assert_eq!(deleted["object"]["data"], b["data"]);
    assert!(revision(&deleted["object"]) > revision(&changed), "the revision of the deletion");
    // From nowhere, a watch begins with what is there; on one object, it shows that one.
    let mut events = lab.watch(&format!("{CM}?watch=true")).await;
    assert_eq!(events.name().await, ("ADDED".to_owned(), "a".to_owned()));
    let mut events = lab.watch(&format!("{CM}?watch=true&resourceVersion=0&fieldSelector=metadata.name%3Dc")).await;
    lab.config_map("b", "1").await;
    lab.config_map("c", "1").await;
    assert_eq!(events.name().await, ("ADDED".to_owned(), "c".to_owned()));
}

#[tokio::test]
async fn objects_enter_and_leave_a_selection() {
    let lab = Lab::start().await;
    let first =
        lab.post(CM, &json!({"metadata": {"name": "a", "labels": {"x": "1"}}, "data": {"k": "1"}})).await.expect(201);
    let mut events =
        lab.watch(&format!("{CM}?watch=true&labelSelector=x%3D1&resourceVersion={}", revision(&first))).await;
    let path = format!("{CM}/a");
    lab.patch(&path, MERGE, &json!({"data": {"k": "2"}})).await.expect(200);
    let left =
        lab.patch(&path, MERGE, &json!({"metadata": {"labels": {"x": "2"}}, "data": {"k": "3"}})).await.expect(200);
    lab.patch(&path, MERGE, &json!({"data": {"k": "4"}})).await.expect(200);
    lab.patch(&path, MERGE, &json!({"metadata": {"labels": {"x": "1"}}})).await.expect(200);
    lab.delete(&path).await.expect(200);
    assert_eq!(events.next().await.expect("an event")["type"], "MODIFIED");
    let event = events.next().await.expect("an event");
    assert_eq!(event["type"], "DELETED");
    assert_eq!(event["object"]["data"]["k"], "2", "the content that was in the selection");
    assert_eq!(revision(&event["object"]), revision(&left), "at the revision that took it out");
    let event = events.next().await.expect("an event");
    assert_eq!((&event["type"], &event["object"]["data"]["k"]), (&json!("ADDED"), &json!("4")));
    assert_eq!(events.next().await.expect("an event")["type"], "DELETED");
}

#[tokio::test]
async fn bookmarks_initial_events_and_timeouts() {
    let lab = Lab::with(|options| options.config.bookmark_interval = std::time::Duration::from_millis(100)).await;
    lab.config_map("a", "1").await;
    let list = lab.get(CM).await.expect(200);
    let mut events = lab
        .watch(&format!(
            "{CM}?watch=true&allowWatchBookmarks=true&timeoutSeconds=2&resourceVersion={}",
            revision(&list)
        ))
        .await;
    // Changes elsewhere move the bookmarks of a quiet resource on.
    let elsewhere =
        lab.post("/api/v1/namespaces/default/secrets", &json!({"metadata": {"name": "s"}})).await.expect(201);
    let mut last = 0;
    while let Some(event) = events.next().await {
        assert_eq!((&event["type"], &event["object"]["kind"]), (&json!("BOOKMARK"), &json!("ConfigMap")));
        assert!(revision(&event["object"]) >= last);
        last = revision(&event["object"]);
    }
    assert_eq!(last, revision(&elsewhere), "the stream ended by itself, after a bookmark");

    let query = "watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let mut events = lab.watch(&format!("{CM}?{query}")).await;
    assert_eq!(events.name().await, ("ADDED".to_owned(), "a".to_owned()));
    let bookmark = events.next().await.expect("an event");
    assert_eq!(
        (&bookmark["type"], &bookmark["object"]["metadata"]["annotations"]),
        (&json!("BOOKMARK"), &json!({"k8s.io/initial-events-end": "true"}))
    );
    lab.config_map("b", "1").await;
    loop {
        let event = events.next().await.expect("an event");
        if event["type"] != "BOOKMARK" {
            assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("b")));
            break;
        }
    }
    lab.get(&format!("{CM}?watch=true&sendInitialEvents=true")).await.fails(422, "Invalid");
}

/// A watch that selects none of many changes still gets its bookmarks, and ends when it should.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_busy_kind_does_not_starve_a_selective_watch() {
    let lab = Lab::with(|options| options.config.bookmark_interval = std::time::Duration::from_millis(100)).await;
    let path = format!(
        "{CM}?watch=true&allowWatchBookmarks=true&timeoutSeconds=2&resourceVersion=0&labelSelector=none%3Dsuch"
    );
    let mut events = lab.watch(&path).await;
    let lab = std::sync::Arc::new(lab);
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let lab = std::sync::Arc::clone(&lab);
            tokio::spawn(async move {
                for n in 0_u64.. {
                    lab.config_map(&format!("busy-{writer}-{n}"), "1").await;
                }
            })
        })
        .collect();
    let until_end = async {
        let mut bookmarks = 0;
        while let Some(event) = events.next().await {
            assert_eq!(event["type"], "BOOKMARK");
            bookmarks += 1;
        }
        bookmarks
    };
    let bookmarks = tokio::time::timeout(std::time::Duration::from_secs(20), until_end).await.expect("the watch ends");
    for writer in writers {
        writer.abort();
    }
    assert!(bookmarks >= 5, "{bookmarks} bookmarks in two seconds, one is due each 100 ms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn watchers_see_every_change_once_and_in_order() {
    let lab = Lab::start().await;
    let start = revision(&lab.get(CM).await.expect(200));
    let mut watchers = Vec::new();
    for _ in 0..20 {
        watchers.push(lab.watch(&format!("{CM}?watch=true&resourceVersion={start}")).await);
    }
    let lab = std::sync::Arc::new(lab);
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let lab = std::sync::Arc::clone(&lab);
            tokio::spawn(async move {
                for round in 0..15 {
                    let name = format!("w{writer}-{round}");
                    lab.config_map(&name, "1").await;
                    lab.patch(&format!("{CM}/{name}"), MERGE, &json!({"data": {"k": "2"}})).await.expect(200);
                    if round % 3 == 0 {
                        lab.delete(&format!("{CM}/{name}")).await.expect(200);
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("a writer");
    }
    let expected = 8 * (15 * 2 + 5);
    let mut sequences: Vec<Vec<(u64, String)>> = Vec::new();
    for watcher in &mut watchers {
        let mut seen = Vec::new();
        while seen.len() < expected {
            let event = watcher.next().await.expect("an event");
            seen.push((revision(&event["object"]), event["type"].as_str().expect("text").to_owned()));
        }
        assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0), "in order, none twice");
        sequences.push(seen);
    }
    assert!(sequences.iter().all(|sequence| *sequence == sequences[0]), "the same for all");
    // What the events add up to is what a list shows.
    let mut model = BTreeMap::new();
    let mut events = lab.watch(&format!("{CM}?watch=true&resourceVersion={start}")).await;
    for _ in 0..expected {
        let event = events.next().await.expect("an event");
        let name = event["object"]["metadata"]["name"].as_str().expect("a name").to_owned();
        if event["type"] == "DELETED" {
            model.remove(&name);
        } else {
            model.insert(name, revision(&event["object"]));
        }
    }
    let list = lab.get(CM).await.expect(200);
    let listed: BTreeMap<String, u64> = list["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|item| (item["metadata"]["name"].as_str().expect("a name").to_owned(), revision(item)))
        .collect();
    assert_eq!(model, listed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_on_one_counter_lose_nothing() {
    let lab = std::sync::Arc::new(Lab::start().await);
    lab.post(CM, &json!({"metadata": {"name": "n"}, "data": {"count": "0"}})).await.expect(201);
    let writers: Vec<_> = (0..16)
        .map(|_| {
            let lab = std::sync::Arc::clone(&lab);
            tokio::spawn(async move {
                let mut conflicts = 0;
                for _ in 0..10 {
                    loop {
                        let mut object = lab.get(&format!("{CM}/n")).await.expect(200);
                        let count: u64 = object["data"]["count"].as_str().expect("text").parse().expect("a number");
                        object["data"]["count"] = json!((count + 1).to_string());
                        let answer = lab.put(&format!("{CM}/n"), &object).await;
                        if answer.code == 200 {
                            break;
                        }
                        answer.fails(409, "Conflict");
                        conflicts += 1;
                    }
                }
                conflicts
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("a writer");
    }
    assert_eq!(lab.get(&format!("{CM}/n")).await.expect(200)["data"]["count"], "160");
}

#[tokio::test]
async fn a_path_with_a_name_is_read_and_one_without_is_not_written() {
    let lab = Lab::start().await;
    let made = lab.config_map("a", "1").await;
    // As kube-apiserver: the parameter means nothing here, and the right that counts is "get".
    assert_eq!(lab.get(&format!("{CM}/a?watch=true")).await.expect(200), made);
    for path in [CM, "/apis/coordination.k8s.io/v1/namespaces/default/leases"] {
        lab.put(path, &made).await.fails(405, "MethodNotAllowed");
        lab.patch(path, MERGE, &json!({})).await.fails(405, "MethodNotAllowed");
    }
}
