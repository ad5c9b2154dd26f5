//! A limit on the rate of requests.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};
use tower::{Layer, Service};

/// A token bucket: `burst` tokens at most, `qps` new ones a second. Time is an argument.
#[derive(Debug)]
pub(crate) struct Bucket {
    qps: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    pub(crate) fn new(qps: f64, burst: u32, now: Instant) -> Self {
        let burst = f64::from(burst.max(1));
        Self { qps, burst, tokens: burst, at: now }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = self.burst.min(self.tokens + passed * self.qps);
        self.at = self.at.max(now);
    }

    /// Takes a token, if need be a future one; gives how long until it is there.
    pub(crate) fn take(&mut self, now: Instant) -> Duration {
        self.refill(now);
        self.tokens -= 1.0;
        if self.tokens >= 0.0 {
            Duration::ZERO
        } else {
            // A rate near zero must not make a duration that overflows.
            Duration::try_from_secs_f64(-self.tokens / self.qps).unwrap_or(Duration::from_hours(24))
        }
    }

    /// Takes a token if one is there.
    pub(crate) fn try_take(&mut self, now: Instant) -> bool {
        self.refill(now);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

/// Limits the rate at which a service is called; all services made by one layer and its clones share the limit.
#[derive(Debug, Clone)]
pub struct RateLimitLayer {
    bucket: Arc<Mutex<Bucket>>,
}

impl RateLimitLayer {
    /// A limit of `qps` calls a second, after a burst of `burst` (at least one).
    pub fn new(qps: f64, burst: u32) -> Self {
        Self { bucket: Arc::new(Mutex::new(Bucket::new(qps, burst, Instant::now()))) }
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit { inner, bucket: self.bucket.clone(), turn: Turn::None }
    }
}

/// A service whose calls wait for their turn. Made by [`RateLimitLayer`].
#[derive(Debug)]
pub struct RateLimit<S> {
    inner: S,
    bucket: Arc<Mutex<Bucket>>,
    turn: Turn,
}

/// Where the next call stands.
#[derive(Debug)]
enum Turn {
    None,
    Waiting(Pin<Box<Sleep>>),
    Come,
}

impl<S, R> Service<R> for RateLimit<S>
where
    S: Service<R>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        loop {
            match &mut self.turn {
                Turn::None => {
                    let now = Instant::now();
                    let wait = self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(now);
                    self.turn = if wait.is_zero() {
                        Turn::Come
                    } else {
                        Turn::Waiting(Box::pin(tokio::time::sleep_until(now + wait)))
                    };
                }
                Turn::Waiting(sleep) => {
                    ready!(sleep.as_mut().poll(cx));
                    self.turn = Turn::Come;
                }
                Turn::Come => return self.inner.poll_ready(cx),
            }
        }
    }

    fn call(&mut self, request: R) -> Self::Future {
        self.turn = Turn::None;
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower::{ServiceBuilder, ServiceExt, service_fn};

    #[tokio::test(start_paused = true)]
    async fn calls_wait_for_their_turn() {
        let start = Instant::now();
        let mut service = ServiceBuilder::new()
            .layer(RateLimitLayer::new(10.0, 5))
            .service(service_fn(|()| async { Ok::<_, std::convert::Infallible>(()) }));
        for _ in 0..5 {
            service.ready().await.unwrap().call(()).await.unwrap();
        }
        assert_eq!(start.elapsed(), Duration::ZERO, "the burst is free");
        for _ in 0..20 {
            service.ready().await.unwrap().call(()).await.unwrap();
        }
        let took = start.elapsed().as_millis();
        assert!((1990..2050).contains(&took), "20 calls at 10 a second took {took} ms");
        tokio::time::sleep(Duration::from_mins(1)).await;
        let idle = Instant::now();
        for _ in 0..5 {
            service.ready().await.unwrap().call(()).await.unwrap();
        }
        assert_eq!(idle.elapsed(), Duration::ZERO, "the burst is back, and no more than that");
        service.ready().await.unwrap().call(()).await.unwrap();
        assert!(idle.elapsed() > Duration::from_millis(90));
    }
}
