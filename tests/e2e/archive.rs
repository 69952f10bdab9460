//! Archives: a real stream in a folder and in a real S3-compatible store, looked at, thinned out and refused by the
//! command line.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use serde_json::Value;
use writ::{
    archive::{
        manifest::{Class, Verified},
        read::{Archived, Item, open},
        segment::SegmentLimits,
        store::{Listed, Read, Store, Taken},
        write::{Leaf, Sealed, Written, waiting, write_part},
    },
    evidence::gather,
    operator::{Operator, OperatorProfile},
};
use writ_bus::SystemClock;
use writ_common::{
    control::RevocationTarget,
    ids::PartId,
    subjects::part_stream,
    tlog::{LogId, SignedCheckpoint, Tree},
    wire::AdminWanted,
};
use writ_tests::{S3Server, World, read, run};

use crate::{WRIT, cli::Said, parts::until_current};

/// The store a server keeps in its bucket, and its text.
fn store(server: &S3Server) -> Result<(Store, &'static str)> {
    let variables = server.variables(S3Server::SECRET);
    let environment =
        |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
    let place = "s3://archive/of/writ";
    Ok((Store::open_in(place, &environment)?, place))
}

/// Runs `writ` with these variables, and no other of a store's.
fn writ(folder: &Path, variables: &[(&str, String)], arguments: &[&str]) -> Result<Said> {
    let output = Command::new(WRIT)
        .args(arguments)
        .current_dir(folder)
        .env_remove("AWS_SECRET_ACCESS_KEY_FILE")
        .env_remove("AWS_SESSION_TOKEN")
        .env_remove("AWS_REGION")
        .envs(variables.iter().map(|(name, value)| (*name, value.as_str())))
        .stdin(Stdio::null())
        .output()?;
    Ok(Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
    })
}

async fn archive(
    operator: &Operator,
    store: &Store,
    heads: &BTreeMap<LogId, SignedCheckpoint>,
) -> Result<Written> {
    let (tenant, part) = (operator.tenant().clone(), PartId::first());
    let stream = part_stream(&tenant, &part);
    let facts = operator.bus().stream_facts(&stream).await?.context("the stream")?;
    let control = operator.control().await?;
    let tail = operator.bus().tail(&stream, &format!("writ.v1.{tenant}.>"), 1).await?;
    let sealed = Sealed {
        tenant,
        part,
        created: facts.created(),
        last: facts.last_sequence,
        sealed_at: SystemClock::new().now().wall,
        checkpoints: heads.iter().map(|(log, head)| (log.clone(), head.note().to_owned())).collect(),
        verified: Verified::default(),
    };
    let limits = SegmentLimits { messages: 4, ..SegmentLimits::default() };
    write_part(store, &sealed, &limits, waiting(tail), |message| Leaf::of(message, &control)).await
}

#[test]
fn a_stream_in_an_archive_is_all_of_it_and_its_hashes_lead_to_the_signed_roots() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        for number in 0..5 {
            read(&task, &format!("SELECT {number}")).await?;
            read(&task, "DELETE FROM customers").await.unwrap_err();
        }
        let operator = Operator::connect(&OperatorProfile::load(&world.layout.operator())?).await?;
        let mut records = BTreeSet::new();
        let gathered = gather::records(&operator, None, |message, _| {
            records.insert(message.sequence);
            Ok(true)
        })
        .await?;
        let heads = gathered.heads;
        let server = S3Server::start("archive")?;
        let (bucket, _) = store(&server)?;
        let folder = Store::open(world.folder().join("archive").to_str().context("a path")?)?;
        let written = archive(&operator, &bucket, &heads).await?;
        // The same stream is the same files, wherever they are.
        assert_eq!(written.manifest.segments, archive(&operator, &folder, &heads).await?.manifest.segments);
        assert!(archive(&operator, &bucket, &heads).await?.was_there);

        let (tenant, part) = (operator.tenant(), PartId::first());
        let archived = open(&bucket, tenant, &part, Some(&written.digest)).await?;
        let mut messages = archived.messages(&bucket, &Class::ALL, None);
        let mut seen = BTreeMap::new();
        while let Some(item) = messages.next().await? {
            let Item::Message(message) = item else { panic!("nothing was deleted") };
            seen.insert(message.sequence, message);
        }
        // Everything the stream has, as it has it.
        let stream = part_stream(tenant, &part);
        let last = archived.manifest.stream.last;
        for sequence in 1..=last {
            let stored = operator.bus().message_at(&stream, sequence).await?;
            assert_eq!(seen.get(&sequence).cloned(), stored.map(Into::into), "message {sequence}");
        }
        let classes: BTreeSet<Class> =
            archived.manifest.segments.iter().map(|segment| segment.class).collect();
        assert_eq!(classes.len(), 3, "{:?}", archived.manifest.segments);
        // Every log from its first record on, up to what its recorder signed and a broker saw.
        assert!(archived.manifest.runs.len() >= 2);
        for run in &archived.manifest.runs {
            let head = &heads[&run.log];
            let (size, root) = (head.checkpoint().size, head.checkpoint().root);
            let leaves = archived.leaves(&bucket, run).await?;
            assert!(leaves.iter().map(|(position, _)| *position).eq(0..run.count()));
            let tree = Tree::of(leaves.into_iter().map(|(_, hash)| hash));
            assert_eq!(tree.root_at(size)?, root, "{}", run.log);
            assert_eq!(run.checkpoint.as_deref(), Some(head.note()));
        }

        // The command line, as an operator sees it.
        let variables = server.variables(S3Server::SECRET);
        let place = "s3://archive/of/cli";
        operator.ask(AdminWanted::RotatePart).await?;
        operator.revoke(RevocationTarget::Task(task.id().clone()), true).await?;
        until_current(&world, &PartId::numbered(1)).await?;
        let profile = world.layout.archiver().display().to_string();
        let arguments = ["--profile", &profile, "audit", "archive", "--archive", place, "--keep-stream"];
        let said = writ(world.folder(), &variables, &arguments)?;
        assert!(said.code == 0 && said.out.contains("its stream is still there"), "{}{}", said.out, said.err);
        let asked = |arguments: &[&str]| {
            let arguments = [&["audit"], arguments, &["--archive", place, "-o", "json"]].concat();
            let said = writ(world.folder(), &variables, &arguments)?;
            let json: Value =
                serde_json::from_str(&said.out).with_context(|| format!("{}{}", said.out, said.err))?;
            anyhow::Ok((said.code, json))
        };
        let (code, told) = asked(&["archived", "--check"])?;
        assert_eq!((code, &told["parts"][0]["damaged"]), (0, &Value::Array(vec![])), "{told:#}");
        assert!(told["parts"][0]["manifest"].is_string());
        let (code, told) = asked(&["retain"])?;
        let plan = &told["parts"][0];
        assert_eq!((code, &plan["delete"]), (0, &Value::Array(vec![])), "{told:#}");
        assert!(plan["keep"].as_array().unwrap().iter().all(|kept| kept["why"] == "young"));
        // What is held stays, whatever its age: the task has all of it but what names no task.
        let hold = format!("task:{}", task.id());
        let old = ["--records", "0s", "--content", "0s", "--state", "0s"];
        let (_, told) = asked(&[&["retain", "--dry-run", "--hold", &hold][..], &old[..]].concat())?;
        let held = told["parts"][0]["keep"].as_array().unwrap();
        assert!(held.iter().any(|kept| kept["why"] == "held"), "{told:#}");
        let (code, told) = asked(&[&["retain"][..], &["--state", "0s"]].concat())?;
        let gone = told["parts"][0]["delete"].as_array().unwrap().len();
        assert!(code == 0 && gone > 0, "{told:#}");
        let (code, told) = asked(&["archived", "--check"])?;
        assert_eq!(code, 0, "{told:#}");
        assert_eq!(told["parts"][0]["deleted"].as_array().unwrap().len(), gone);
        let left = fs::read_dir(server.bucket("archive").join("of/cli/acme/p0"))?
            .filter(|file| {
                file.as_ref().is_ok_and(|file| file.file_name().to_string_lossy().starts_with("state-"))
            })
            .count();
        assert_eq!(left, 0);
        // One byte, and it is named; the exit code says so too.
        let file = server.bucket("archive").join("of/cli/acme/p0/records-000000.jsonl.gz");
        let mut bytes = fs::read(&file)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&file, bytes)?;
        let (code, told) = asked(&["archived", "--check"])?;
        let damaged = told["parts"][0]["damaged"].to_string();
        assert!(code == 1 && damaged.contains("records-000000.jsonl.gz"), "{code} {damaged}");
        // Without its manifest's word nothing of a part is deleted.
        let manifest = server.bucket("archive").join("of/cli/acme/p0/manifest.json");
        fs::write(&manifest, fs::read_to_string(&manifest)?.replace("writ-archive/1", "writ-archive/2"))?;
        let (code, told) = asked(&[&["retain"][..], &old[..]].concat())?;
        let damaged = told["parts"][0]["damaged"].to_string();
        assert!(code == 1 && damaged.contains("this writ reads"), "{code} {damaged}");
        operator.close().await;
        world.close().await;
        Ok(())
    })
}

#[test]
fn a_bucket_keeps_what_it_was_given() -> Result<()> {
    run(async {
        let server = S3Server::start("archive")?;
        // More than a page of a list.
        let many = server.bucket("archive").join("of/writ/ab");
        fs::create_dir_all(&many)?;
        for number in 0..1_005 {
            fs::write(many.join(number.to_string()), "x")?;
        }
        let (store, _) = store(&server)?;
        assert_eq!(store.list(None).await?.len(), 1_005);
        assert_eq!(store.list(Some("a")).await?, Vec::new());
        assert_eq!(store.get("a/b", 10).await?, None);
        store.put("a/b", b"one").await?;
        store.put("a/b", b"one").await?;
        for other in [b"two".as_slice(), b"on", b"one and more", b""] {
            let error = store.put("a/b", other).await.unwrap_err();
            assert!(error.is::<Taken>(), "{error:#}");
        }
        assert_eq!(store.get("a/b", 3).await?, Some(b"one".to_vec()));
        assert_eq!(store.read("a/b", 2).await?, Read::Larger);
        store.replace("a/c", b"1").await?;
        store.replace("a/c", b"22").await?;
        store.put("ab/empty", b"").await?;
        store.put("ab/empty", b"").await?;
        let of = |key: &str, bytes| Listed { key: key.to_owned(), bytes };
        assert_eq!(store.list(Some("a")).await?, [of("a/b", 3), of("a/c", 2)]);
        assert_eq!(store.list(Some("ab")).await?.len(), 1_006);
        store.delete("a/b").await?;
        store.delete("a/b").await?;
        assert_eq!(store.list(Some("a")).await?, [of("a/c", 2)]);
        Ok(())
    })
}

#[test]
fn a_wrong_secret_is_refused_and_no_secret_is_shown() -> Result<()> {
    let server = S3Server::start("archive")?;
    let folder = tempfile::tempdir()?;
    let secret = folder.path().join("secret");
    fs::write(&secret, format!("{}\n", S3Server::SECRET))?;
    let asked = |variables: &[(&'static str, String)], place: &str| {
        let said = writ(folder.path(), variables, &["audit", "archived", "--archive", place])?;
        let all = format!("{}{}", said.out, said.err);
        for secret in [S3Server::SECRET, "another-secret", "a-token", "Signature="] {
            assert!(!all.contains(secret), "{all}");
        }
        anyhow::Ok((said.code, all))
    };
    let right = server.variables(S3Server::SECRET);
    let (code, said) = asked(&right, "s3://archive")?;
    assert!(code == 0 && said.contains("the archive holds no part"), "{said}");
    let (code, said) = asked(&server.variables("another-secret"), "s3://archive")?;
    assert!(code == 1 && said.contains("403 SignatureDoesNotMatch"), "{said}");
    assert!(said.contains("AWS_SECRET_ACCESS_KEY is not the one of AWS_ACCESS_KEY_ID"), "{said}");
    let mut unknown = right.clone();
    unknown[0].1 = "nobody".to_owned();
    let (code, said) = asked(&unknown, "s3://archive")?;
    assert!(code == 1 && said.contains("the store does not know AWS_ACCESS_KEY_ID"), "{said}");
    let (code, said) = asked(&right, "s3://elsewhere")?;
    assert!(code == 1 && said.contains("there is no such bucket"), "{said}");
    // Nobody listens there.
    let mut away = right.clone();
    away[2].1 = format!("http://127.0.0.1:{}", writ::dev::nats_server::free_port()?);
    away.push(("AWS_SESSION_TOKEN", "a-token".to_owned()));
    let (code, said) = asked(&away, "s3://archive")?;
    assert!(code == 1 && said.contains("the store does not answer"), "{said}");
    // From a file, which nobody else may read.
    let mut of_file = right;
    of_file.remove(1);
    of_file.push(("AWS_SECRET_ACCESS_KEY_FILE", secret.display().to_string()));
    let (code, said) = asked(&of_file, "s3://archive")?;
    assert!(code == 1 && said.contains("chmod"), "{said}");
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let (code, said) = asked(&of_file, "s3://archive")?;
    assert!(code == 0, "{said}");
    Ok(())
}

#[test]
fn an_archive_in_a_folder_needs_no_profile_and_says_what_was_never_finished() -> Result<()> {
    run(async {
        let folder = tempfile::tempdir()?;
        let store = Store::open(folder.path().join("archive").to_str().context("a path")?)?;
        store.put("acme/p4/records-000000.jsonl.gz", b"half").await?;
        assert_eq!(Archived::list(&store).await?, (vec![], vec!["acme/p4".to_owned()]));
        let said = writ(folder.path(), &[], &["audit", "archived", "--archive", "archive"])?;
        assert_eq!(said.code, 0, "{}", said.err);
        assert!(said.out.contains("acme/p4: has no manifest"), "{}", said.out);
        Ok(())
    })
}
