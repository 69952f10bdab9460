//! The configuration in deploy/nats, with keys and a certificate put in.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use writ::dev::{nats_conf, nats_server};
use writ_bus::{Bus, BusConfig, Fence, Keeps, NatsUser, Store, StreamSpec};
use writ_tests::{eventually, run};

/// The accounts with a key in every place; `node-1` and `broker-1` are ours.
fn accounts(node: &NatsUser, broker: &NatsUser) -> Result<String> {
    let mut accounts = nats_conf::shipped_accounts()?.render();
    accounts = accounts.replace("<nkey of node-1>", node.public());
    accounts = accounts.replace("<nkey of broker-1>", broker.public());
    for (seed, name) in ["archiver", "ops", "bob", "bootstrap", "planner", "dlp"].iter().enumerate() {
        let other = NatsUser::from_seed_bytes([u8::try_from(seed)? + 20; 32])?;
        accounts = accounts.replace(&format!("<nkey of {name}>"), other.public());
    }
    assert!(!accounts.contains('<'), "every place is filled");
    Ok(accounts)
}

#[test]
fn the_shipped_cluster_runs_with_tls_and_keeps_a_stream_on_all_three() -> Result<()> {
    run(async {
        let folder = tempfile::tempdir()?;
        let broker = NatsUser::from_seed_bytes([8; 32])?;
        let accounts = accounts(&NatsUser::from_seed_bytes([7; 32])?, &broker)?;
        let tls = folder.path().join("tls");
        fs::create_dir(&tls)?;
        let certificate = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        for name in ["server", "route"] {
            fs::write(tls.join(format!("{name}.pem")), certificate.cert.pem())?;
            fs::write(tls.join(format!("{name}.key")), certificate.signing_key.serialize_pem())?;
        }
        fs::write(tls.join("routes-ca.pem"), certificate.cert.pem())?;
        let routes = [(); 3].map(|()| nats_server::free_port());
        let (mut servers, mut urls) = (Vec::new(), Vec::new());
        for (number, route) in (1..).zip(&routes) {
            let own = folder.path().join(format!("{number}"));
            fs::create_dir(&own)?;
            let port = nats_server::free_port()?;
            let mut server = nats_conf::shipped_cluster()
                .replace("$SERVER_NAME", &format!("writ-{number}"))
                .replace("/etc/nats/tls", &tls.display().to_string())
                .replace("0.0.0.0:4222", &format!("127.0.0.1:{port}"))
                .replace("0.0.0.0:6222", &format!("127.0.0.1:{}", route.as_ref().ok().context("a port")?))
                .replace("/var/lib/nats", &own.join("store").display().to_string());
            for (other, route) in (1..).zip(&routes) {
                let address = format!("127.0.0.1:{}", route.as_ref().ok().context("a port")?);
                server = server.replace(&format!("nats-{other}.example.com:6222"), &address);
            }
            fs::write(own.join("accounts.conf"), &accounts)?;
            fs::write(own.join("cluster.conf"), server)?;
            servers.push(nats_server::NatsServer::start(
                &nats_server::find()?,
                &own.join("cluster.conf"),
                port,
            )?);
            urls.push(format!("tls://127.0.0.1:{port}"));
        }
        let config = BusConfig {
            urls,
            user: broker,
            name: "broker-1".to_owned(),
            inbox_prefix: "_INBOX.broker.broker-1".to_owned(),
            ca_file: Some(tls.join("server.pem")),
        };
        let bus = Bus::connect(config).await?;
        let spec = StreamSpec {
            name: "WRIT_acme_control".to_owned(),
            subjects: vec!["writ.v1.acme.control.*".to_owned()],
            bytes_max: 1024 * 1024,
            duplicate_window: Duration::from_secs(120),
            replicas: 3,
            keeps: Keeps::All,
        };
        // They have to find each other first.
        eventually("a stream on three servers", async || Ok(bus.ensure_stream(&spec).await.is_ok())).await?;
        let store = Store {
            subject: "writ.v1.acme.control.event".to_owned(),
            payload: b"x".to_vec(),
            message_id: None,
            fence: Fence::LastOfStream(0),
            ttl_secs: None,
        };
        assert_eq!(bus.store(&store, Duration::from_secs(5)).await?.sequence, 1);
        // Two of three are enough, one is not.
        servers.pop();
        let next = Store { fence: Fence::LastOfStream(1), ..store.clone() };
        eventually("two go on", async || Ok(bus.store(&next, Duration::from_secs(2)).await.is_ok())).await?;
        servers.pop();
        let alone = Store { fence: Fence::LastOfStream(2), ..store };
        assert!(bus.store(&alone, Duration::from_secs(3)).await.is_err());
        Ok(())
    })
}

#[test]
fn the_shipped_files_run_with_tls_and_let_nobody_else_in() -> Result<()> {
    run(async {
        let folder = tempfile::tempdir()?;
        let port = nats_server::free_port()?;
        let user = NatsUser::from_seed_bytes([7; 32])?;
        let accounts = accounts(&user, &NatsUser::from_seed_bytes([8; 32])?)?;
        let server = nats_conf::shipped_server()
            .replace("/etc/nats/tls", &folder.path().join("tls").display().to_string())
            .replace("0.0.0.0:4222", &format!("127.0.0.1:{port}"))
            .replace("/var/lib/nats", &folder.path().join("store").display().to_string());
        fs::create_dir(folder.path().join("tls"))?;
        let certificate = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        let ca = folder.path().join("tls/server.pem");
        fs::write(&ca, certificate.cert.pem())?;
        fs::write(folder.path().join("tls/server.key"), certificate.signing_key.serialize_pem())?;
        fs::write(folder.path().join("accounts.conf"), accounts)?;
        fs::write(folder.path().join("server.conf"), server)?;
        let binary = nats_server::find()?;
        let _server = nats_server::NatsServer::start(&binary, &folder.path().join("server.conf"), port)?;
        let config = |scheme: &str, ca_file| BusConfig {
            urls: vec![format!("{scheme}://127.0.0.1:{port}")],
            user: user.clone(),
            name: "node-1".to_owned(),
            inbox_prefix: "_INBOX.node.node-1".to_owned(),
            ca_file,
        };
        let bus = Bus::connect(config("tls", Some(ca.clone()))).await?;
        bus.flush().await?;
        assert!(Bus::connect(config("tls", None)).await.is_err(), "a certificate nobody vouches for");
        let stranger = NatsUser::from_seed_bytes([99; 32])?;
        assert!(Bus::connect(BusConfig { user: stranger, ..config("tls", Some(ca)) }).await.is_err());
        Ok(())
    })
}
