//! The configuration in deploy/nats, with keys and a certificate put in.

use std::fs;

use anyhow::Result;
use writ::dev::{nats_conf, nats_server};
use writ_bus::{Bus, BusConfig, NatsUser};
use writ_tests::run;

#[test]
fn the_shipped_files_run_with_tls_and_let_nobody_else_in() -> Result<()> {
    run(async {
        let folder = tempfile::tempdir()?;
        let port = nats_server::free_port()?;
        let user = NatsUser::from_seed_bytes([7; 32])?;
        let mut accounts = nats_conf::shipped_accounts()?.render();
        accounts = accounts.replace("<nkey of node-1>", user.public());
        for (seed, name) in ["broker-1", "ops", "bob", "bootstrap", "planner"].iter().enumerate() {
            let other = NatsUser::from_seed_bytes([u8::try_from(seed)? + 20; 32])?;
            accounts = accounts.replace(&format!("<nkey of {name}>"), other.public());
        }
        assert!(!accounts.contains('<'), "every place is filled");
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
