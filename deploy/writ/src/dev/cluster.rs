//! Several nats-servers on loopback that keep the streams together: what three machines do, on one.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use writ_bus::keyfile;

use super::{
    Layout, fixed_port,
    nats_conf::{self, Member},
    nats_server::{self, NatsServer},
};

/// How long the servers may take to find each other and a leader.
const LEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// What the leader's own log says once it is that.
const LEADS: &str = "Self is new JetStream cluster metadata leader";

/// The folder of a server; the first one's is also where the accounts are.
fn folder(layout: &Layout, number: usize) -> PathBuf {
    if number == 1 { layout.at("nats") } else { layout.at(&format!("nats/{number}")) }
}

/// Where a server keeps its streams.
pub(super) fn config(layout: &Layout, number: usize) -> PathBuf {
    folder(layout, number).join("server.conf")
}

/// Writes the servers' files; their ports stay the same at every start.
pub(super) fn write(layout: &Layout, wanted: Option<u16>, servers: usize) -> Result<Vec<Member>> {
    let mut members = Vec::new();
    for number in 1..=servers {
        let folder = folder(layout, number);
        keyfile::make_private_folder(&folder)?;
        let port = fixed_port(&folder.join("port"), wanted.filter(|_| number == 1))?;
        members.push(Member { port, route_port: fixed_port(&folder.join("route-port"), None)? });
    }
    for (number, member) in (1..).zip(&members) {
        let store = folder(layout, number).join("jetstream");
        let text = match members.as_slice() {
            [only] => nats_conf::loopback_server(only.port, &store),
            all => {
                let accounts = if number == 1 { "accounts.conf" } else { "../accounts.conf" };
                nats_conf::loopback_member(number, *member, all, &store, accounts)
            }
        };
        fs::write(config(layout, number), text)?;
    }
    Ok(members)
}

/// Starts the servers, and waits until they have a leader if they need one.
pub(super) async fn start(layout: &Layout, members: &[Member]) -> Result<Vec<NatsServer>> {
    let binary = nats_server::find()?;
    let servers = (1..)
        .zip(members)
        .map(|(number, member)| NatsServer::start(&binary, &config(layout, number), member.port));
    let servers: Vec<NatsServer> = servers.collect::<Result<_>>()?;
    let since = Instant::now();
    let leads = |number| {
        let log = fs::read_to_string(folder(layout, number).join("nats.log")).unwrap_or_default();
        log.contains(LEADS)
    };
    while members.len() > 1 && !(1..=members.len()).any(leads) {
        if since.elapsed() > LEADER_TIMEOUT {
            bail!("the nats-servers have no leader after {} s", LEADER_TIMEOUT.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(servers)
}
