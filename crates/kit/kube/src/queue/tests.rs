use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

const BACKOFF: Backoff = Backoff { start: Duration::from_secs(1), max: Duration::from_mins(5) };

fn queue() -> WorkQueue<&'static str> {
    WorkQueue::new("test", BACKOFF, None)
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn the_backoff_doubles_up_to_its_limit() {
    let waits: Vec<u64> = (1..=11).map(|n| BACKOFF.after(n, 0.0).as_secs()).collect();
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    assert_eq!(BACKOFF.after(u32::MAX, 0.0), BACKOFF.max);
    assert_eq!(BACKOFF.after(1, 1.0), millis(900));
}

#[tokio::test(start_paused = true)]
async fn a_key_waits_once_and_is_never_worked_on_twice_at_a_time() {
    let queue = queue();
    queue.add("a");
    queue.add("a");
    queue.add("b");
    assert_eq!(queue.len(), 2);
    let first = queue.next().await;
    assert_eq!(*first, "a");
    // It changes while being worked on: again, but only afterwards.
    queue.add("a");
    queue.add("a");
    assert_eq!(*queue.next().await, "b");
    tokio::time::timeout(millis(10), queue.next()).await.map(|work| *work).unwrap_err();
    first.finish(Outcome::Done);
    let again = queue.next().await;
    assert_eq!(*again, "a");
    again.finish(Outcome::Done);
    assert!(queue.is_empty());
}

#[tokio::test(start_paused = true)]
async fn failures_wait_longer_each_time_until_forgotten() {
    let queue = queue();
    queue.add("a");
    for want in [1, 2, 4] {
        queue.next().await.finish(Outcome::Retry);
        let start = Instant::now();
        let work = queue.next().await;
        let waited = start.elapsed().as_secs_f64();
        let want = f64::from(want);
        assert!(waited > want * 0.89 && waited < want + 0.01, "{waited} for {want}");
        drop(work);
        queue.add("a");
    }
    queue.next().await.finish(Outcome::Done);
    queue.add("a");
    queue.next().await.finish(Outcome::Retry);
    let start = Instant::now();
    queue.next().await.finish(Outcome::After(Duration::from_mins(1)));
    assert!(start.elapsed() <= millis(1001), "the failures were forgotten");
    queue.next().await.finish(Outcome::Done);
    assert!(start.elapsed() >= Duration::from_mins(1));
}

#[tokio::test(start_paused = true)]
async fn the_earlier_of_two_times_counts() {
    let queue = queue();
    let start = Instant::now();
    queue.add_after("a", Duration::from_secs(10));
    queue.add_after("a", Duration::from_secs(5));
    queue.add_after("a", Duration::from_secs(20));
    queue.next().await.finish(Outcome::Done);
    assert_eq!(start.elapsed().as_secs(), 5);
    assert!(tokio::time::timeout(Duration::from_mins(1), queue.next()).await.is_err(), "and only once");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_worker_wakes_for_an_earlier_key() {
    let queue = queue();
    queue.add_after("late", Duration::from_secs(100));
    let worker = {
        let queue = queue.clone();
        tokio::spawn(async move { *queue.next().await })
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    queue.add_after("early", Duration::from_secs(1));
    assert_eq!(worker.await.unwrap(), "early");
}

#[tokio::test(start_paused = true)]
async fn idle_means_no_work_and_no_retry() {
    let queue = queue();
    queue.wait_idle().await;
    queue.add("a");
    queue.add_after("tomorrow", Duration::from_hours(24));
    let start = Instant::now();
    let shutdown = Shutdown::new();
    let tries = Arc::new(AtomicU32::new(0));
    let runner = {
        let (queue, shutdown, tries) = (queue.clone(), shutdown.clone(), tries.clone());
        tokio::spawn(async move {
            queue
                .run(3, &shutdown, move |_| {
                    let tries = tries.clone();
                    async move {
                        tokio::time::sleep(millis(100)).await;
                        let tries = tries.fetch_add(1, Ordering::SeqCst) + 1;
                        assert_ne!(tries, 2, "a panic counts as a failure");
                        if tries < 3 { Outcome::Retry } else { Outcome::Done }
                    }
                })
                .await;
        })
    };
    queue.wait_idle().await;
    assert_eq!(tries.load(Ordering::SeqCst), 3);
    let took = start.elapsed();
    assert!(took > millis(2900) && took < millis(3400), "two back-offs and three times 100 ms: {took:?}");
    shutdown.trigger();
    runner.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_with_many_workers() {
    let metrics = Metrics::new();
    let queue: WorkQueue<u32> = WorkQueue::new("many", BACKOFF, Some(QueueMetrics::register(&metrics)));
    let shutdown = Shutdown::new();
    let seen = Arc::new(Mutex::new(HashSet::new()));
    let runner = {
        let (queue, shutdown, seen) = (queue.clone(), shutdown.clone(), seen.clone());
        tokio::spawn(async move {
            queue
                .run(16, &shutdown, move |key| {
                    let seen = seen.clone();
                    async move {
                        tokio::task::yield_now().await;
                        seen.lock().unwrap().insert(key);
                        Outcome::Done
                    }
                })
                .await;
        })
    };
    for key in 0..5000 {
        match key % 3 {
            0 => queue.add(key),
            1 => queue.add_after(key, millis(u64::from(key % 7))),
            _ => queue.add_rate_limited_for_test(key),
        }
    }
    tokio::time::timeout(Duration::from_secs(30), async {
        while seen.lock().unwrap().len() < 5000 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    queue.wait_idle().await;
    shutdown.trigger();
    runner.await.unwrap();
    let text = metrics.encode();
    assert!(text.contains("workqueue_adds_total{name=\"many\"} 5000"), "{text}");
    assert!(text.contains("workqueue_depth{name=\"many\"} 0"), "{text}");
    assert!(text.contains("workqueue_work_duration_seconds_count{name=\"many\"} 5000"), "{text}");
}

impl WorkQueue<u32> {
    /// As a retry, but soon.
    fn add_rate_limited_for_test(&self, key: u32) {
        self.schedule(key, millis(1), true);
    }
}
