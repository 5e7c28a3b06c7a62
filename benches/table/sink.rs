//! The destination: a process that takes deliveries, answers at once, and counts and times them.
//!
//! A delivery to `/s/N` belongs to stream N. There are two such ports, so that there are two origins, and a third port
//! that takes connections and never answers. `GET /stats/N?sent=COUNT` tells what came of a stream's first messages.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::Read as _;
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

use crate::arrivals::Arrivals;
use crate::procs::now_us;
use crate::{http, print_line};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Of a body, what is read for its numbers; the rest of a larger one is thrown away.
const BUFFER: usize = 64 << 10;

/// Where it listens.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Ports {
    pub(crate) main: SocketAddr,
    /// The same under another origin.
    pub(crate) other: SocketAddr,
    /// Never answers.
    pub(crate) silent: SocketAddr,
}

/// Runs until standard input ends. Prints the [`Ports`].
pub(crate) fn main() -> Result<()> {
    std::thread::spawn(|| {
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let [main, other, silent] = [bind().await?, bind().await?, bind().await?];
        let ports =
            Ports { main: main.local_addr()?, other: other.local_addr()?, silent: silent.local_addr()? };
        print_line(&serde_json::to_string(&ports)?)?;
        let state = Rc::new(RefCell::default());
        spawn_local(serve(other, Rc::clone(&state)));
        spawn_local(swallow(silent));
        serve(main, state).await
    })
}

async fn bind() -> Result<TcpListener> {
    Ok(TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?)
}

async fn serve(listener: TcpListener, state: Rc<RefCell<Arrivals>>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let state = Rc::clone(&state);
        // A connection that breaks is the sender's affair.
        spawn_local(async move { connection(stream, &state).await.ok() });
    }
}

async fn swallow(listener: TcpListener) -> Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        spawn_local(async move {
            let mut buffer = vec![0; 4096];
            while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
        });
    }
}

async fn connection(mut stream: TcpStream, state: &RefCell<Arrivals>) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut filled = 0;
    loop {
        let count = stream.read(&mut buffer[filled..]).await?;
        if count == 0 {
            return Ok(());
        }
        filled += count;
        let Some(head) = http::head(&buffer[..filled])? else {
            anyhow::ensure!(filled < BUFFER, "a head of more than {BUFFER} bytes");
            continue;
        };
        let whole = head.length + head.body;
        if filled < whole.min(BUFFER) {
            continue;
        }
        let mut left = whole.saturating_sub(filled);
        while left > 0 {
            // Into the end of the buffer: the numbers are at the beginning.
            let from = BUFFER / 2;
            let to = BUFFER.min(from + left);
            let count = stream.read(&mut buffer[from..to]).await?;
            anyhow::ensure!(count > 0, "the connection ended in a body");
            left -= count;
        }
        let target = target(&buffer);
        let body = &buffer[head.length..whole.min(filled)];
        match target.strip_prefix("/stats/") {
            None => {
                state.borrow_mut().deliver(target, body, now_us());
                stream.write_all(ANSWER).await?;
            }
            Some(stats) => {
                let json = serde_json::to_string(&state.borrow().stats(stats)?)?;
                let mut answer = String::new();
                write!(answer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{json}", json.len())?;
                stream.write_all(answer.as_bytes()).await?;
                if head.close {
                    return Ok(());
                }
            }
        }
        let used = whole.min(filled);
        buffer.copy_within(used..filled, 0);
        filled -= used;
    }
}

fn target(request: &[u8]) -> &str {
    let mut words = request.split(|byte| *byte == b' ');
    words.nth(1).and_then(|word| str::from_utf8(word).ok()).unwrap_or_default()
}
