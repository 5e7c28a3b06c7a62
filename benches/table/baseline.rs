//! What taking a body costs at least: a bare server on the same library that reads it into memory and answers.

use anyhow::Result;
use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::routing::post;

use crate::print_line;

/// Runs until it is killed. Prints its address.
pub(crate) fn main() -> Result<()> {
    std::thread::spawn(|| {
        std::io::Read::read_to_end(&mut std::io::stdin(), &mut Vec::new()).ok();
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        print_line(&listener.local_addr()?.to_string())?;
        let router = Router::new().route("/", post(answer)).layer(DefaultBodyLimit::disable());
        axum::serve(listener, router).await?;
        Ok(())
    })
}

async fn answer(body: Bytes) -> String {
    body.len().to_string()
}
