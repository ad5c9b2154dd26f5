//! Figures, to be run in release: `cargo nextest run --release -p outrigger-lab-store bench --run-ignored only
//! --no-capture`.

use std::time::{Duration, Instant};

use outrigger_lab_store::{Durability, Expect, Options, Store};

use crate::value;

fn resident() -> u64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn key(index: usize) -> String {
    format!("/registry/core/configmaps/default/object-{index:06}")
}

fn rate(count: usize, took: Duration) -> String {
    let each = took.as_secs_f64() / f64::from(u32::try_from(count).unwrap());
    format!("{:>9.0}/s, {:.1} us each", 1.0 / each, each * 1e6)
}

#[test]
#[ignore = "a measurement"]
fn bench_commits() {
    let object = "x".repeat(1024);
    for durability in [Durability::Memory, Durability::Process] {
        let dir = tempfile::tempdir().unwrap();
        let dir = (durability != Durability::Memory).then(|| dir.path().to_owned());
        let store = Store::open(Options { dir, durability, ..Options::memory() }).unwrap();
        for threads in [1, 16] {
            let count = 100_000;
            let start = Instant::now();
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let (store, object) = (&store, &object);
                    scope.spawn(move || {
                        for index in (thread..count).step_by(threads) {
                            store.write(&key(index), Expect::Any, |_| value(object)).unwrap();
                        }
                    });
                }
            });
            println!("{durability:?}, 1 KiB, {threads:>2} threads: {}", rate(count, start.elapsed()));
        }
    }
    for tasks in [1, 16, 128] {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Options { durability: Durability::Power, ..Options::directory(dir.path()) }).unwrap();
        let count = 500 * tasks;
        let start = Instant::now();
        let work: Vec<_> = (0..tasks)
            .map(|task| {
                let (store, object) = (store.clone(), object.clone());
                runtime.spawn(async move {
                    for index in (task..count).step_by(tasks) {
                        let made = store.write(&key(index), Expect::Any, |_| value(&object)).unwrap();
                        store.durable(made.modified).await.unwrap();
                    }
                })
            })
            .collect();
        for task in work {
            runtime.block_on(task).unwrap();
        }
        let took = start.elapsed();
        println!("Power, 1 KiB, {tasks:>3} tasks: {}, {} syncs", rate(count, took), store.stats().syncs);
    }
}

#[test]
#[ignore = "a measurement"]
fn bench_memory_and_replay() {
    const COUNT: usize = 100_000;
    let object = "x".repeat(1024);
    let dir = tempfile::tempdir().unwrap();
    let options = Options::directory(dir.path());
    let before = resident();
    let store = Store::open(options.clone()).unwrap();
    for index in 0..COUNT {
        store.write(&key(index), Expect::Absent, |_| value(&object)).unwrap();
    }
    let grown = resident() - before;
    println!("100,000 objects of 1 KiB: {} MiB, {} bytes an object", grown >> 20, grown / COUNT as u64);
    let start = Instant::now();
    let all = store.range("/registry/", None, 0, None).unwrap().versions.len();
    println!("scan of {all}: {:?}", start.elapsed());
    let start = Instant::now();
    let page = store.range("/registry/", None, 500, None).unwrap();
    println!("first page of {} with {} remaining: {:?}", page.versions.len(), page.remaining, start.elapsed());
    drop(page);
    let start = Instant::now();
    let fork = store.fork();
    println!("fork: {:?}", start.elapsed());
    drop(fork);
    drop(store);
    let start = Instant::now();
    let store = Store::open(options).unwrap();
    println!("replay of {}: {:?}, {:?}", store.stats().keys, start.elapsed(), store.stats());
}

#[test]
#[ignore = "a measurement"]
fn bench_watch() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let store = Store::open(Options { history: 1_000_000, ..Options::memory() }).unwrap();
    for watchers in [0usize, 1, 100] {
        let count = 20_000;
        let from = store.revision();
        let tasks: Vec<_> = (0..watchers)
            .map(|_| {
                let mut watch = store.watch("/registry/core/configmaps/", from).unwrap();
                runtime.spawn(async move {
                    let mut seen = 0;
                    while seen < count {
                        seen += watch.next().await.unwrap().events.len();
                    }
                })
            })
            .collect();
        let start = Instant::now();
        for index in 0..count {
            store.write(&key(index), Expect::Any, |_| value("x")).unwrap();
        }
        let wrote = start.elapsed();
        for task in tasks {
            runtime.block_on(task).unwrap();
        }
        println!("{watchers:>3} watchers: {}, all seen after {:?}", rate(count, wrote), start.elapsed());
    }
    let other: Vec<_> = (0..200)
        .map(|_| {
            let mut watch = store.watch("/registry/core/secrets/", store.revision()).unwrap();
            runtime.spawn(async move { watch.next().await.map(|_| ()) })
        })
        .collect();
    let start = Instant::now();
    for index in 0..20_000 {
        store.write(&key(index), Expect::Any, |_| value("x")).unwrap();
    }
    println!("200 watchers elsewhere: {}", rate(20_000, start.elapsed()));
    for task in other {
        task.abort();
    }
}
