//! A page that shows a cluster as it works, and sends a spike when somebody wants to see one.
//!
//! Once a second while somebody looks, and now and then else, it asks the leader and the nodes what `weir top` asks, and keeps the last ten
//! minutes of that. The page asks for what is new. Everything that it needs comes from here: nothing is fetched from elsewhere.
//!
//! Whoever can open it sees the cluster's names and figures. So it answers only to names of this machine: a page of somebody else's that
//! makes a browser ask here under its own name is refused.

mod spike;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use weir_client::admin::Status;
use weir_client::{Admin, LocalClient, Options};
use weir_core::history::BOUNDS_US;
use weir_host::Host;

use self::spike::{Spike, Spikes};
use crate::callers::is_own;
use crate::view::{View, look};
use crate::{GatewayError, serve};

pub use self::spike::Samples;

/// Looks that are kept: ten minutes of those that are a second apart.
const FRAMES: usize = 600;
/// From one look to the next.
const EVERY: Duration = Duration::from_secs(1);
/// The same while nobody has asked for any of late.
const SELDOM: Duration = Duration::from_secs(10);
/// For so long after it was asked somebody looks.
const WATCHED: Duration = Duration::from_secs(15);

/// What the page's threads share.
struct Dashboard {
    frames: Mutex<Frames>,
    spikes: Spikes,
    to_spike: mpsc::Sender<Spike>,
}

#[derive(Default)]
struct Frames {
    /// With their numbers, the newest last.
    kept: VecDeque<(u64, Value)>,
    next: u64,
    asked: Option<Instant>,
}

impl Frames {
    fn push(&mut self, mut frame: Value) {
        frame["n"] = json!(self.next);
        self.kept.push_back((self.next, frame));
        self.next += 1;
        if self.kept.len() > FRAMES {
            self.kept.pop_front();
        }
    }

    /// Those after number `after`; all where it is of another run.
    fn after(&self, after: Option<u64>) -> Vec<&Value> {
        let after = after.filter(|after| *after < self.next);
        self.kept.iter().filter(|(n, _)| after.is_none_or(|after| *n > after)).map(|(_, frame)| frame).collect()
    }
}

/// Serves the page on a thread of its own until `shutdown`.
pub fn serve_dashboard(
    listener: TcpListener,
    options: Options,
    samples: Samples,
    shutdown: watch::Receiver<bool>,
) -> Result<(), GatewayError> {
    let listener = listener.into_std().map_err(GatewayError::Thread)?;
    let run = move || async move {
        let Ok(listener) = TcpListener::from_std(listener) else { return };
        let (to_spike, wanted) = mpsc::channel(1);
        let dashboard = Arc::new(Dashboard { frames: Mutex::default(), spikes: Spikes::new(samples), to_spike });
        tokio::task::spawn_local(keep_looking(Arc::clone(&dashboard), options.clone()));
        tokio::task::spawn_local(spike_on_demand(Arc::clone(&dashboard), options, wanted));
        let (to, accepted) = mpsc::unbounded_channel();
        tokio::join!(
            serve::accept(listener, vec![to], shutdown.clone()),
            serve::http(accepted, routes(dashboard), shutdown)
        );
    };
    serve::thread("weir-dashboard", run).map(drop).map_err(GatewayError::Thread)
}

fn routes(dashboard: Arc<Dashboard>) -> Router {
    let file = |kind: &'static str, text: &'static str| {
        get(move || async move { ([(CONTENT_TYPE, HeaderValue::from_static(kind))], text) })
    };
    Router::new()
        .route("/", file("text/html; charset=utf-8", include_str!("index.html")))
        .route("/app.js", file("text/javascript; charset=utf-8", include_str!("app.js")))
        .route("/style.css", file("text/css; charset=utf-8", include_str!("style.css")))
        .route("/favicon.svg", file("image/svg+xml", include_str!("favicon.svg")))
        .route("/api/frames", get(frames))
        .route("/api/spike", post(start_spike))
        .layer(from_fn(guard))
        .with_state(dashboard)
}

/// Lets in who asks for this machine by one of its own names, and keeps pages to what comes from here.
async fn guard(headers: HeaderMap, request: Request, next: Next) -> Response {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
    if !is_own(host) {
        let why = "this dashboard answers to addresses and to localhost, not to other names\n";
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let policy = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[derive(Deserialize)]
struct After {
    after: Option<u64>,
}

async fn frames(State(dashboard): State<Arc<Dashboard>>, Query(After { after }): Query<After>) -> Response {
    let mut frames = dashboard.frames.lock().unwrap_or_else(PoisonError::into_inner);
    frames.asked = Some(Instant::now());
    json_reply(json!({"frames": frames.after(after), "spike": dashboard.spikes.told()}))
}

fn json_reply(value: Value) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], value.to_string()).into_response()
}

/// A form of another page cannot send this header, so that a click there starts nothing here.
const HEADER: &str = "x-weir-dashboard";

async fn start_spike(State(dashboard): State<Arc<Dashboard>>, headers: HeaderMap, body: String) -> Response {
    let refused = |status: StatusCode, why: String| (status, json!({"error": why}).to_string()).into_response();
    if !headers.contains_key(HEADER) {
        return refused(StatusCode::FORBIDDEN, format!("spikes are started from the page, with the header {HEADER}"));
    }
    let spike = match Spike::parse(&body) {
        Ok(spike) => spike,
        Err(why) => return refused(StatusCode::BAD_REQUEST, why),
    };
    match dashboard.to_spike.try_send(spike) {
        Ok(()) => json_reply(json!({"started": true})),
        Err(_) => refused(StatusCode::CONFLICT, "a spike is under way; wait until it is over".into()),
    }
}

async fn spike_on_demand(dashboard: Arc<Dashboard>, options: Options, mut wanted: mpsc::Receiver<Spike>) {
    let mut client = None;
    while let Some(spike) = wanted.recv().await {
        let connected = match client.take() {
            Some(client) => Ok(client),
            None => LocalClient::connect(Host::system(), options.clone()).await,
        };
        match connected {
            Ok(connected) => {
                connected.allow_connections(16);
                dashboard.spikes.run(&connected, spike).await;
                client = Some(connected);
            }
            Err(error) => dashboard.spikes.failed(error.to_string()),
        }
    }
}

/// Looks for as long as the thread lives.
async fn keep_looking(dashboard: Arc<Dashboard>, options: Options) {
    let admin = Admin::new(Host::system(), options);
    loop {
        let began = Instant::now();
        let frame = match look(&admin, 1).await {
            Ok((status, view)) => frame(&status, &view),
            // A cluster that is away for a while is told as such, and may come back.
            Err(error) => json!({"t": unix_ms(), "error": error.to_string()}),
        };
        dashboard.frames.lock().unwrap_or_else(PoisonError::into_inner).push(frame);
        loop {
            let asked = dashboard.frames.lock().unwrap_or_else(PoisonError::into_inner).asked;
            let watched = asked.is_some_and(|asked| asked.elapsed() < WATCHED);
            let until = if watched { EVERY } else { SELDOM };
            if began.elapsed() >= until {
                break;
            }
            tokio::time::sleep((until - began.elapsed()).min(EVERY / 5)).await;
        }
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// What the page shows of one look.
fn frame(status: &Status, view: &View) -> Value {
    let bounds: Vec<Duration> = BOUNDS_US.iter().map(|us| Duration::from_micros(*us)).collect();
    let mut frame = view.as_json();
    for told in frame["endpoints"].as_array_mut().into_iter().flatten() {
        let endpoint = view.endpoints.iter().find(|(name, _)| told["name"] == name.as_str());
        if let Some((name, endpoint)) = endpoint {
            // By the bounds of metrics' histograms, so that both tell the same.
            told["latencies"] = json!(endpoint.tally.latencies.between(&bounds));
            told["deadline_us"] =
                json!(status.state.endpoints.get(name).map(|known| known.deadline.as_micros() as u64));
        }
    }
    frame["t"] = json!(unix_ms());
    frame["bounds_us"] = json!(BOUNDS_US);
    frame["cluster"] = json!(status.state.cluster);
    frame["leader"] = json!(status.leader.0);
    frame["term"] = json!(status.term);
    frame["unplaceable"] = json!(status.unplaceable);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_numbered_and_the_oldest_go() {
        let mut frames = Frames::default();
        (0..FRAMES + 5).for_each(|i| frames.push(json!({"i": i})));
        assert_eq!(frames.kept.len(), FRAMES);
        assert_eq!(frames.after(None).len(), FRAMES);
        let last = frames.next - 1;
        assert_eq!(frames.after(Some(last - 2)).len(), 2);
        assert!(frames.after(Some(last)).is_empty());
        assert_eq!(frames.after(Some(last + 1)).len(), FRAMES, "of a run before this one");
    }
}
