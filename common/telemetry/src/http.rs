//! `/healthz`, `/readyz` and `/metrics` over HTTP.
//!
//! Whoever asks is answered from the [`Snapshot`] the event loop published last; nothing reaches the loop from
//! here. Connections, bytes and time are bounded, and when there are too many connections the oldest is closed, so
//! that whoever holds some open keeps nobody else out.

use std::{collections::VecDeque, convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinHandle},
    time::Instant,
};

use crate::metrics;

/// Most connections at once.
const CONNECTIONS_MAX: usize = 32;
/// Most bytes of a request's head.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Most headers of a request.
const HEADERS_MAX: usize = 32;
/// How long a request's head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take altogether.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How old a snapshot may be before the event loop counts as standing still; it publishes ten a second.
const SNAPSHOT_AGE_MAX: Duration = Duration::from_secs(5);
/// Pause after the system had no connection for us (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What an event loop says of itself.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When it was taken.
    pub at: Instant,
    /// What is missing to decide; nothing means ready.
    pub missing: Vec<String>,
    /// The numbers, in Prometheus text format.
    pub metrics: String,
}

/// Where an event loop publishes.
#[derive(Clone, Debug)]
pub struct Snapshots(Arc<watch::Sender<Snapshot>>);

impl Snapshots {
    /// Replaces what was published before.
    pub fn publish(&self, missing: Vec<String>, metrics: String) {
        self.0.send_replace(Snapshot { at: Instant::now(), missing, metrics });
    }
}

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
#[error("`http.listen`: {address} cannot be used: {source}")]
pub struct HttpError {
    /// The address.
    pub address: SocketAddr,
    /// What the system says.
    pub source: std::io::Error,
}

/// A running listener; it ends when dropped.
#[derive(Debug)]
pub struct HttpHandle {
    address: SocketAddr,
    worker: JoinHandle<()>,
}

impl HttpHandle {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for HttpHandle {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

/// Listens on an address, and answers with what is published.
///
/// # Errors
/// [`HttpError`] if the address cannot be used.
pub async fn serve_http(address: SocketAddr) -> Result<(HttpHandle, Snapshots), HttpError> {
    let failed = |source| HttpError { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let first = Snapshot {
        at: Instant::now(),
        missing: vec!["start: not finished".to_owned()],
        metrics: String::new(),
    };
    let (sender, snapshots) = watch::channel(first);
    let worker = tokio::spawn(accept(listener, snapshots));
    Ok((HttpHandle { address: bound, worker }, Snapshots(Arc::new(sender))))
}

/// Connections under way, the oldest first; they end with the listener.
#[derive(Default)]
struct Connections(VecDeque<AbortHandle>);

impl Connections {
    fn add(&mut self, connection: AbortHandle) {
        self.0.retain(|known| !known.is_finished());
        if self.0.len() == CONNECTIONS_MAX
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(connection);
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

async fn accept(listener: TcpListener, snapshots: watch::Receiver<Snapshot>) {
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let serving = tokio::time::timeout(CONNECTION_TIMEOUT, serve(stream, snapshots.clone()));
                connections.add(tokio::spawn(serving).abort_handle());
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn serve(stream: TcpStream, snapshots: watch::Receiver<Snapshot>) {
    let service = service_fn(async |request: Request<Incoming>| {
        let snapshot = snapshots.borrow().clone();
        Ok::<_, Infallible>(answer(request.method(), request.uri().path(), &snapshot, Instant::now()))
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    // Whoever asked is gone, or sent no request: nobody is left to be told.
    drop(connection.await);
}

fn answer(method: &Method, path: &str, snapshot: &Snapshot, now: Instant) -> Response<Full<Bytes>> {
    let still = now.saturating_duration_since(snapshot.at);
    let is_alive = still <= SNAPSHOT_AGE_MAX;
    let stands_still = || format!("event loop: stands still since {} s\n", still.as_secs());
    let (status, kind, body) = match path {
        "/healthz" | "/readyz" | "/metrics" if *method != Method::GET => {
            (StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET\n".to_owned())
        }
        "/healthz" if is_alive => (StatusCode::OK, PLAIN, "ok\n".to_owned()),
        "/healthz" => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, stands_still()),
        "/readyz" if !is_alive => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, stands_still()),
        "/readyz" if snapshot.missing.is_empty() => (StatusCode::OK, PLAIN, "ready\n".to_owned()),
        "/readyz" => {
            let body = format!("not ready\n{}\n", snapshot.missing.join("\n"));
            (StatusCode::SERVICE_UNAVAILABLE, PLAIN, body)
        }
        "/metrics" => (StatusCode::OK, metrics::CONTENT_TYPE, snapshot.metrics.clone()),
        _ => (StatusCode::NOT_FOUND, PLAIN, "there are /healthz, /readyz and /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET"));
    }
    response
}

const PLAIN: &str = "text/plain; charset=utf-8";

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn snapshot(missing: &[&str]) -> Snapshot {
        Snapshot {
            at: Instant::now(),
            missing: missing.iter().map(|one| (*one).to_owned()).collect(),
            metrics: "writ_x 1\n".to_owned(),
        }
    }

    fn status(method: &Method, path: &str, snapshot: &Snapshot, later: Duration) -> u16 {
        answer(method, path, snapshot, snapshot.at + later).status().as_u16()
    }

    #[test]
    fn ready_is_more_than_alive_and_a_loop_that_stands_still_is_neither() {
        let (now, late) = (Duration::ZERO, SNAPSHOT_AGE_MAX + Duration::from_millis(1));
        let (ready, waiting) = (snapshot(&[]), snapshot(&["bus: not connected"]));
        assert_eq!(status(&Method::GET, "/readyz", &ready, now), 200);
        assert_eq!(status(&Method::GET, "/readyz", &waiting, now), 503);
        assert_eq!(status(&Method::GET, "/healthz", &waiting, now), 200);
        assert_eq!(status(&Method::GET, "/healthz", &ready, late), 503);
        assert_eq!(status(&Method::GET, "/readyz", &ready, late), 503);
        assert_eq!(status(&Method::GET, "/metrics", &ready, late), 200);
        assert_eq!(status(&Method::POST, "/readyz", &ready, now), 405);
        assert_eq!(status(&Method::GET, "/", &ready, now), 404);
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // What the other side did not read of us may reset the connection after its answer.
        let _ended = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn connections_held_open_keep_nobody_out() {
        let (server, snapshots) = serve_http(([127, 0, 0, 1], 0).into()).await.unwrap();
        snapshots.publish(Vec::new(), "writ_x 1\n".to_owned());
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS_MAX * 2 {
            let mut stream = TcpStream::connect(server.address()).await.unwrap();
            // The first line of a request, and never the end of its head.
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n").await.unwrap();
            held.push(stream);
        }
        let asked =
            tokio::time::timeout(HEAD_TIMEOUT / 2, ask(server.address(), "GET /metrics HTTP/1.0\r\n\r\n"));
        let answer = asked.await.expect("an answer, long before those held open time out");
        assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("writ_x 1\n"), "{answer}");
        // Of those held open, the first were closed to make room.
        let mut first = held.remove(0);
        let closed = tokio::time::timeout(HEAD_TIMEOUT / 2, first.read(&mut [0; 16])).await;
        assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    }

    #[tokio::test]
    async fn heads_are_bounded() {
        let (server, _snapshots) = serve_http(([127, 0, 0, 1], 0).into()).await.unwrap();
        let long = format!("GET /readyz HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX));
        let many = format!("GET /readyz HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: x\r\n".repeat(HEADERS_MAX));
        for request in [long, many] {
            let answer = ask(server.address(), &request).await;
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
        }
    }
}
