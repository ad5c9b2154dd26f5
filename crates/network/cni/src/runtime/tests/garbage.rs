use std::time::SystemTime;

use super::*;

#[test]
fn garbage_is_collected_from_the_cache_and_by_the_plugins() {
    let bench = Bench::new(&["a", "b"]);
    let runtime = bench.runtime();
    let list = list("1.1.0");
    for plugin in ["a", "b"] {
        bench.answer(plugin, "ADD", &result("1.1.0", "10.0.0.2/24"));
    }
    let other = list_with(&json!({ "cniVersion": "1.1.0", "name": "net-2" }));
    for id in ["keep", "stale", "damaged"] {
        runtime.add(&list, &Attachment::new(id, "eth0").netns("/run/netns/x")).unwrap();
    }
    runtime.add(&other, &Attachment::new("stale", "eth0").netns("/run/netns/x")).unwrap();
    bench.put("cni/results/net-damaged-eth0", "");
    bench.forget();
    let valid = [Attachment::new("keep", "eth0").id()];
    let collected = runtime.gc(&list, &valid).into_result().unwrap();
    let deleted: Vec<_> = collected.deleted.iter().map(ToString::to_string).collect();
    assert_eq!(deleted, ["damaged/eth0", "stale/eth0"]);
    assert_eq!(collected.plugins, ["a", "b"]);
    assert_eq!(bench.calls(), ["DEL b", "DEL a", "DEL b", "DEL a", "GC a", "GC b"]);
    assert!(bench.got(2, "env").contains("CNI_NETNS=/run/netns/x"));
    let expected = json!([{ "containerID": "keep", "ifname": "eth0" }]);
    let stdin = bench.stdin(5);
    assert_eq!((&stdin["cni.dev/valid-attachments"], &stdin["cni.dev/attachments"]), (&expected, &expected));
    assert_eq!(
        (&stdin["name"], &stdin["cniVersion"], stdin.get("runtimeConfig")),
        (&json!("net"), &json!("1.1.0"), None)
    );
    assert!(bench.got(4, "env").contains("CNI_CONTAINERID=\n"));
    let left: Vec<_> = runtime.attachments(None).unwrap().into_iter().map(|cached| cached.network).collect();
    assert_eq!(left, ["net-2", "net"]);
    assert_eq!(runtime.attachments(Some("keep")).unwrap().len(), 1);
}

#[test]
fn gc_does_what_the_version_and_the_list_allow_and_all_it_can() {
    let bench = Bench::new(&["a", "b"]);
    let runtime = bench.runtime();
    for plugin in ["a", "b"] {
        bench.answer(plugin, "ADD", &result("1.0.0", "10.0.0.2/24"));
    }
    runtime.add(&list("1.0.0"), &pod()).unwrap();
    bench.forget();
    let off = list_with(&json!({ "cniVersion": "1.1.0", "disableGC": "true" }));
    runtime.gc(&off, &[]).into_result().unwrap();
    assert_eq!(bench.calls(), [""; 0]);
    bench.fails("a", "DEL", "", "no");
    bench.fails("a", "GC", r#"{"code":100,"msg":"gone mad"}"#, "");
    let collected = runtime.gc(&list("1.1.0"), &[]);
    assert_eq!(bench.calls(), ["DEL b", "DEL a", "GC a", "GC b"]);
    assert_eq!((collected.deleted.len(), collected.plugins.as_slice()), (0, ["b".to_owned()].as_slice()));
    let error = collected.into_result().unwrap_err().report();
    assert_eq!(error, "plugin \"a\" failed to DEL: no (exit code 1); plugin \"a\" failed to GC: gone mad");
    bench.recovers("a", "DEL");
    bench.forget();
    runtime.gc(&list("1.0.0"), &[]).into_result().unwrap();
    assert_eq!(bench.calls(), ["DEL b", "DEL a"]);
}

fn names(held: &[Held]) -> Vec<String> {
    held.iter().map(|held| held.attachment.id().to_string()).collect()
}

fn left(plan: &Plan) -> Vec<(&str, &str)> {
    plan.left.iter().map(|left| (left.file.file_name().unwrap().to_str().unwrap(), left.why.as_str())).collect()
}

#[test]
fn what_cannot_be_judged_is_left_alone() {
    let bench = Bench::new(&["a", "b"]);
    let runtime = bench.runtime();
    let list = list("1.1.0");
    bench.make_cache();
    bench.put("cni/results/net-newer-eth0", r#"{"kind":"cniCacheV2","containerId":"newer"}"#);
    bench.put("cni/results/net-b-c1-eth0", r#"{"cniVersion":"0.4.0"}"#);
    bench.put("cni/results/net-c1-eth-0", "");
    // It can be listed and not read, as when no file can be opened any more.
    std::os::unix::fs::symlink("net-loop-eth0", bench.path("cni/results/net-loop-eth0")).unwrap();
    let plan = runtime.plan_gc(&list, &[], &[], &|_| panic!("there is nothing to judge")).unwrap();
    assert_eq!((plan.valid.len(), plan.stale.len()), (0, 0));
    let [b, minus, looped, newer] = left(&plan)[..] else { panic!("{plan:?}") };
    assert!(b.0 == "net-b-c1-eth0" && b.1.contains("not clear"), "{b:?}");
    assert!(minus.0 == "net-c1-eth-0" && minus.1.contains("empty; where in its name"), "{minus:?}");
    assert!(looped.0 == "net-loop-eth0" && looped.1.contains("cannot be read now"), "{looped:?}");
    assert!(newer.0 == "net-newer-eth0" && newer.1.contains("cniCacheV2"), "{newer:?}");
    let collected = runtime.gc(&list, &[]);
    assert_eq!((collected.deleted.len(), collected.left.len(), collected.errors.len()), (0, 4, 0));
    assert_eq!(bench.calls(), ["GC a", "GC b"]);
    assert_eq!(fs::read_dir(bench.path("cni/results")).unwrap().count(), 4);

    // Who says whose it is, leaves no doubt.
    let plan = runtime.plan_gc(&list, &[], &[Attachment::new("c1", "eth-0").id()], &|_| false).unwrap();
    assert_eq!((names(&plan.valid), plan.left.len()), (vec!["c1/eth-0".to_owned()], 3));
}

#[test]
fn another_networks_files_are_not_touched() {
    let bench = Bench::new(&["a", "b"]);
    let runtime = bench.runtime();
    let net_b = list_with(&json!({ "cniVersion": "1.0.0", "name": "net-b" }));
    bench.make_cache();
    for content in ["", r#"{"cniVersion":"0.4.0"}"#, r#"{"kind":"cniCacheV2"}"#] {
        bench.put("cni/results/net-b-c1-eth0", content);
        assert_eq!(runtime.gc(&list("1.0.0"), &[]).into_result().unwrap().deleted, []);
        // It may also be container b-c1 of net, if there is such a network.
        let plan = runtime.plan_gc(&net_b, &["net"], &[], &|_| false).unwrap();
        assert_eq!((plan.stale.len(), plan.left.len()), (0, 1), "{content}");
    }
    assert_eq!(bench.calls(), [""; 0]);
    bench.put("cni/results/net-b-c1-eth0", "");
    let plan = runtime.plan_gc(&net_b, &["other"], &[], &|_| false).unwrap();
    assert_eq!(names(&plan.stale), ["c1/eth0"]);
}

#[test]
fn each_file_is_judged_by_what_it_holds() {
    let bench = Bench::new(&["a", "b"]);
    let runtime = bench.runtime();
    let list = list("1.0.0");
    for plugin in ["a", "b"] {
        bench.answer(plugin, "ADD", &result("1.0.0", "10.0.0.2/24"));
    }
    runtime.add(&list, &Attachment::new("whole", "eth0").netns("/run/netns/whole")).unwrap();
    bench.put(
        "cni/results/net-bare-eth0",
        r#"{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/run/netns/bare"}]}"#,
    );
    bench.put("cni/results/net-lost-eth0", "");
    let judged = Mutex::new(Vec::new());
    let plan = runtime.plan_gc(&list, &[], &[], &|held| {
        let netns = held.attachment.netns.as_ref().map(|path| path.display().to_string());
        let age = held.modified.unwrap().elapsed().unwrap_or_default();
        assert!(age < Duration::from_hours(1) && held.modified < Some(SystemTime::now() + Duration::from_hours(1)));
        judged.lock().unwrap().push((held.attachment.container_id.clone(), netns, held.damage.clone()));
        held.attachment.container_id != "bare"
    });
    let path = |name: &str| Some(format!("/run/netns/{name}"));
    let expected = [
        ("bare".to_owned(), path("bare"), None),
        ("lost".to_owned(), None, Some("empty".to_owned())),
        ("whole".to_owned(), path("whole"), None),
    ];
    assert_eq!(*judged.lock().unwrap(), expected);
    let plan = plan.unwrap();
    assert_eq!(
        (names(&plan.valid), names(&plan.stale)),
        (vec!["lost/eth0".into(), "whole/eth0".into()], vec!["bare/eth0".into()])
    );
    bench.forget();
    let collected = runtime.delete_stale(&list, plan).into_result().unwrap();
    assert_eq!(collected.deleted, [Attachment::new("bare", "eth0").id()]);
    assert_eq!(bench.calls(), ["DEL b", "DEL a"]);
    assert!(bench.got(0, "env").contains("CNI_NETNS=/run/netns/bare\n"));
    assert_eq!(fs::read_dir(bench.path("cni/results")).unwrap().count(), 2);
}

#[test]
fn a_del_that_cannot_read_the_cache_does_not_go_on_without() {
    let bench = Bench::new(&["a", "b"]);
    let runtime = bench.runtime();
    bench.make_cache();
    std::os::unix::fs::symlink("net-c1-eth0", bench.path("cni/results/net-c1-eth0")).unwrap();
    let error = runtime.del(&list("1.0.0"), &Attachment::new("c1", "eth0")).unwrap_err().report();
    assert!(error.starts_with("cannot read ") && error.contains("net-c1-eth0"), "{error}");
    assert_eq!(bench.calls(), [""; 0]);
}
