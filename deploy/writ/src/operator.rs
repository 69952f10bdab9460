//! Operators: signed requests to the broker, and reading the audit stream.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tokio::sync::{mpsc, watch};
use writ_bus::{
    Bus, BusConfig, BusError, Fence, NatsUser, News, Store, StoredMessage, SystemClock, SystemEntropy, Tail,
    follow, follow_parts, keyfile,
};
use writ_common::{
    act::LabelAct,
    approval::{Approval, ApprovalAnswer, ApprovalDecision, Approvals},
    codec::{decode, encode},
    control::{Activation, ControlState, RevocationTarget},
    entropy::draw,
    epoch::Epoch,
    ids::{AgentId, OperatorId, PartId, TaskId, TenantId},
    keys::{PrivateKey, PublicKey},
    policy::PolicyBundle,
    reason::ReasonCode,
    record::{Record, RecordKind},
    settings::Document,
    signed::Signed,
    subjects::{Subject, control_stream, filter, part_stream},
    time::{Millis, Timestamp},
    wire::{AdminReply, AdminRequest, AdminWanted, StatusInfo},
};

use writ_sdk::Identity;

use crate::{
    dev::nats_conf::CoreUser,
    exit::{Denied, Invalid},
};

/// What an operator's commands need to know.
pub struct OperatorProfile {
    /// The tenant.
    pub tenant: TenantId,
    /// The operator's or approver's name.
    pub operator: OperatorId,
    /// Whether it is an approver's profile: the broker answers operators only, and only approvers can answer
    /// requests for approval.
    pub is_approver: bool,
    /// The pinned offline root.
    pub root: PublicKey,
    /// The operator's key.
    pub key: PrivateKey,
    /// The NATS user.
    pub user: NatsUser,
    /// Server addresses.
    pub bus_urls: Vec<String>,
    /// Root certificate for TLS.
    pub ca_file: Option<PathBuf>,
    /// The development identity provider, if there is one.
    pub idp_url: Option<String>,
    /// Folder of the agents' identities, if they are here.
    pub agents: Option<PathBuf>,
}

struct KeyText(PublicKey);

impl std::str::FromStr for KeyText {
    type Err = writ_common::keys::InvalidKey;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        PublicKey::parse(text).map(Self)
    }
}

impl OperatorProfile {
    /// Reads a profile.
    ///
    /// # Errors
    /// [`Invalid`] with every finding, or an unsafe key file.
    pub fn load(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("{name} cannot be read; start `writ dev`, or name a profile with `--profile`")
        })?;
        let base = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
        let none = BTreeMap::new();
        let document = Document::new(&name, &text, &none);
        let mut root = document.root();
        let tenant: Option<TenantId> = root.required("tenant", "\"acme\"");
        let approver: Option<OperatorId> = root.optional("approver");
        let is_approver = approver.is_some();
        let operator: Option<OperatorId> = match approver {
            Some(approver) => Some(approver),
            None => root.required("operator", "\"ops\""),
        };
        let root_key: Option<KeyText> = root.required("root_key", "\"ed25519:…\"");
        let key_file = root.text("key_file", "\"operator.key\"").map(|file| base.join(file));
        let user_file = root.text("user_file", "\"operator.nkey\"").map(|file| base.join(file));
        let bus_urls: Vec<String> = root.list("bus_urls");
        let ca_file = root.optional_text("ca_file").map(|file| base.join(file));
        let idp_url = root.optional_text("idp_url");
        let agents = root.optional_text("agents").map(|folder| base.join(folder));
        root.finish(&[
            "tenant",
            "approver",
            "operator",
            "root_key",
            "key_file",
            "user_file",
            "bus_urls",
            "ca_file",
            "idp_url",
            "agents",
        ]);
        let findings = document.into_findings();
        let (Some(tenant), Some(operator), Some(root), Some(key_file), Some(user_file)) =
            (tenant, operator, root_key, key_file, user_file)
        else {
            return Err(Invalid(findings).into());
        };
        if findings.has_errors() {
            return Err(Invalid(findings).into());
        }
        Ok(Self {
            tenant,
            operator,
            is_approver,
            root: root.0,
            key: keyfile::read_key(&key_file)?,
            user: keyfile::read_user(&user_file)?,
            bus_urls,
            ca_file,
            idp_url,
            agents,
        })
    }
}

impl OperatorProfile {
    /// Where the identity of an agent is, or would be.
    ///
    /// # Errors
    /// If the profile has no place for them.
    pub fn agent_folder(&self, agent: &str) -> Result<PathBuf> {
        let folder = self.agents.as_ref();
        Ok(folder.context("the profile names no folder with agents' identities (`agents`)")?.join(agent))
    }

    /// The identity of an agent that is here.
    ///
    /// # Errors
    /// If it is not.
    pub fn identity(&self, agent: &str) -> Result<Identity> {
        let folder = self.agent_folder(agent)?;
        if !folder.is_dir() {
            bail!(
                "there is no identity of an agent `{agent}` in {}; `writ agent enroll` makes one",
                folder.parent().unwrap_or(&folder).display()
            );
        }
        Ok(Identity::load(folder)?)
    }
}

/// An operator's connection.
pub struct Operator {
    bus: Bus,
    name: OperatorId,
    is_approver: bool,
    tenant: TenantId,
    root: PublicKey,
    key: PrivateKey,
}

/// How long the broker may take; a revocation that waits takes as long as the longest lease.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
const WAIT_TIMEOUT: Duration = Duration::from_secs(120);
/// How often something is asked that can be asked again without harm.
const ATTEMPTS_MAX: u32 = 4;

/// There was no answer, and it can be asked again.
#[derive(Debug, thiserror::Error)]
#[error("the broker did not answer")]
struct Unanswered;
/// What the broker's signed event may add to what is in the request.
const EVENT_BYTES: usize = 1_024;

impl Operator {
    /// Connects.
    ///
    /// # Errors
    /// If there is no connection.
    pub async fn connect(profile: &OperatorProfile) -> Result<Self> {
        let bus = Bus::connect(BusConfig {
            urls: profile.bus_urls.clone(),
            user: profile.user.clone(),
            name: profile.operator.to_string(),
            inbox_prefix: match profile.is_approver {
                true => CoreUser::Approver(profile.operator.clone()),
                false => CoreUser::Operator(profile.operator.clone()),
            }
            .inbox_prefix(),
            ca_file: profile.ca_file.clone(),
        })
        .await?;
        Ok(Self {
            bus,
            name: profile.operator.clone(),
            is_approver: profile.is_approver,
            tenant: profile.tenant.clone(),
            root: profile.root,
            key: profile.key.clone(),
        })
    }

    /// Asks the broker.
    ///
    /// # Errors
    /// [`Denied`] with the broker's reasons, or why it was not reached.
    pub async fn ask(&self, wanted: AdminWanted) -> Result<AdminReply> {
        // An answer on its way while the server takes up other accounts is lost: it forgets who may answer.
        let is_repeatable = matches!(
            wanted,
            AdminWanted::ActivatePolicy { .. }
                | AdminWanted::Agents
                | AdminWanted::HaltAll { .. }
                | AdminWanted::Quarantine { .. }
                | AdminWanted::Revoke { wait: false, .. }
                | AdminWanted::RollbackPolicy { .. }
                | AdminWanted::ShadowPolicy { .. }
                | AdminWanted::Status
                | AdminWanted::Task { .. }
        );
        for _ in 1..ATTEMPTS_MAX {
            match self.ask_once(wanted.clone(), is_repeatable).await {
                Err(error) if error.is::<Unanswered>() => {}
                answered => return answered,
            }
            // What was expected to be in force until then is not any more, if it was done.
            if let AdminWanted::ActivatePolicy { bundle, .. } | AdminWanted::RollbackPolicy { bundle, .. } =
                &wanted
            {
                let control = self.control().await?;
                if control.activations().back().is_some_and(|one| one.revision == bundle.revision()) {
                    return Ok(AdminReply::Done { epoch: control.epoch() });
                }
            }
        }
        self.ask_once(wanted, false).await
    }

    async fn ask_once(&self, wanted: AdminWanted, may_be_repeated: bool) -> Result<AdminReply> {
        if self.is_approver {
            bail!(
                "`{}` is an approver's profile; this takes an operator's: name one with `--profile`",
                self.name
            );
        }
        let waits = matches!(
            wanted,
            AdminWanted::Revoke { wait: true, .. } | AdminWanted::RotatePart | AdminWanted::SealPart { .. }
        );
        let request = AdminRequest {
            tenant: self.tenant.clone(),
            at: SystemClock::new().now().wall,
            nonce: draw(&mut SystemEntropy),
            wanted,
        };
        let payload = encode(&Signed::new(&request, &self.key));
        let bytes = payload.len() + EVENT_BYTES;
        anyhow::ensure!(
            bytes <= self.bus.payload_bytes_max(),
            "the request needs {bytes} bytes in one message and the bus takes {}; raise `max_payload` in nats-server's \
             configuration (deploy/nats/server.conf has 1MB), or make the policy smaller",
            self.bus.payload_bytes_max()
        );
        let subject = Subject::Admin.of(&self.tenant);
        let timeout = if waits { WAIT_TIMEOUT } else { REPLY_TIMEOUT };
        let reply = self.bus.request(subject, payload, None, timeout).await;
        if may_be_repeated && matches!(reply, Err(BusError::TimedOut(_))) {
            return Err(Unanswered.into());
        }
        let reply = reply.context("the broker")?;
        match decode(&reply.payload).context("the broker's answer is not readable")? {
            AdminReply::Refused { reasons } => {
                let words: Vec<String> =
                    reasons.iter().map(|reason| format!("{}: {}", reason.code, reason.text)).collect();
                let between = if words.len() > 3 { "\n  " } else { "; " };
                Err(Denied(words.join(between)).into())
            }
            reply => Ok(reply),
        }
    }

    /// A join token for an agent.
    ///
    /// # Errors
    /// As [`Operator::ask`].
    pub async fn join_token(&self, agent: &AgentId, life: Millis) -> Result<String> {
        match self.ask(AdminWanted::Enroll { agent: agent.clone(), life }).await? {
            AdminReply::Enroll { token, .. } => Ok(token),
            other => bail!("an answer to another question: {other:?}"),
        }
    }

    /// Revokes something; with `wait`, returns once no node can act under it any more.
    ///
    /// # Errors
    /// As [`Operator::ask`].
    pub async fn revoke(&self, target: RevocationTarget, wait: bool) -> Result<Epoch> {
        match self.ask(AdminWanted::Revoke { target, wait }).await? {
            AdminReply::Done { epoch } => Ok(epoch),
            other => bail!("an answer to another question: {other:?}"),
        }
    }

    /// Control state, read from the stream as every node reads it.
    ///
    /// # Errors
    /// If the stream cannot be read.
    pub async fn control(&self) -> Result<ControlState> {
        Ok(self.bus.control_state(&self.tenant, self.root).await?)
    }

    /// Control state, and every policy that was ever put in force, the present one last.
    ///
    /// # Errors
    /// If the stream cannot be read.
    pub async fn policies(&self) -> Result<(ControlState, Vec<(Activation, PolicyBundle)>)> {
        Ok(self.bus.policies(&self.tenant, self.root).await?)
    }

    /// What the broker says of itself and the nodes.
    ///
    /// # Errors
    /// As [`Operator::ask`].
    pub async fn status(&self) -> Result<StatusInfo> {
        match self.ask(AdminWanted::Status).await? {
            AdminReply::Status(status) => Ok(status),
            other => bail!("an answer to another question: {other:?}"),
        }
    }

    /// Every record of the audit stream so far, or of one task, each with its stream sequence: part after part.
    ///
    /// # Errors
    /// If the stream cannot be read.
    pub async fn records(&self, task: Option<&TaskId>) -> Result<Vec<Recorded>> {
        let control = self.control().await?;
        let mut records = Vec::new();
        for part in control.parts().live() {
            let tail = self.audit_tail(part, task, 1).await?;
            tail.drain(|message| records.push(Recorded::open(message.sequence, &message.payload, &control)))
                .await?;
        }
        Ok(records)
    }

    /// Everything about approvals as the stream tells it now.
    ///
    /// # Errors
    /// If the stream cannot be read.
    pub async fn approvals(&self) -> Result<Approvals> {
        let mut approvals = Approvals::default();
        for part in self.control().await?.parts().live() {
            let stream = part_stream(&self.tenant, part);
            for filter in [filter::approvals(&self.tenant, part), filter::approval_claims(&self.tenant, part)]
            {
                let tail = self.bus.tail(&stream, &filter, 1).await?;
                tail.drain(|message| {
                    let now = SystemClock::new().now().wall;
                    // What is not readable is no approval; nodes report it.
                    drop(approvals.take(message.sequence, &message.subject, &message.payload, now));
                })
                .await?;
            }
        }
        Ok(approvals)
    }

    /// Reads requests for approval and answers of a part, from a sequence on.
    ///
    /// # Errors
    /// If the stream cannot be read.
    pub async fn approval_tail(&self, part: &PartId, from: u64) -> Result<Tail> {
        let filter = filter::approvals(&self.tenant, part);
        Ok(self.bus.tail(&part_stream(&self.tenant, part), &filter, from).await?)
    }

    /// Follows every part there is and will be: what `filters` name and comes from now on.
    ///
    /// # Errors
    /// If the streams cannot be read.
    pub async fn follow(
        &self,
        filters: impl Fn(&TenantId, &PartId) -> Vec<String> + Send + 'static,
    ) -> Result<mpsc::Receiver<StoredMessage>> {
        let control = self.control().await?;
        let mut starts = BTreeMap::new();
        for part in control.parts().live() {
            let facts = self.bus.stream_facts(&part_stream(&self.tenant, part)).await?;
            starts.extend(facts.map(|facts| (part.clone(), facts.last_sequence + 1)));
        }
        let (parts, parts_known) = watch::channel(control.parts().live().cloned().collect::<Vec<_>>());
        let (events, mut news) = mpsc::channel(1_024);
        let (told, messages) = mpsc::channel(1_024);
        let (bus, tenant, root) = (self.bus.clone(), self.tenant.clone(), self.root);
        // What is read of the control stream is which parts there are; it begins anew, and says nothing until it is
        // where it was.
        let (changes, mut changed) = mpsc::channel(1_024);
        let subject = Subject::Control.of(&tenant);
        tokio::spawn(follow(bus.clone(), control_stream(&tenant), subject, changes, |news| news));
        tokio::spawn(follow_parts(bus, tenant.clone(), parts_known, filters, starts, events, |news| news));
        tokio::spawn(async move {
            let (mut state, mut is_read) = (ControlState::new(tenant, root), false);
            loop {
                tokio::select! {
                    change = changed.recv() => match change {
                        Some(News::Message(message)) => {
                            // What does not count changes nothing.
                            drop(state.apply(message.sequence, &message.payload));
                            if is_read {
                                parts.send_replace(state.parts().live().cloned().collect());
                            }
                        }
                        Some(News::Read) => is_read = true,
                        None => return,
                    },
                    news = news.recv() => match news {
                        Some(News::Message(message)) => if told.send(message).await.is_err() {
                            return;
                        },
                        Some(News::Read) => {}
                        None => return,
                    },
                }
            }
        });
        Ok(messages)
    }

    /// Answers a request for approval, in the approver's name.
    ///
    /// # Errors
    /// If it is not an approver's profile, or the stream does not take the answer.
    pub async fn answer_approval(
        &self,
        approval: &Approval,
        decision: ApprovalDecision,
        comment: &str,
        expires: Timestamp,
    ) -> Result<()> {
        self.check_approver()?;
        let request = approval.request();
        let answer = ApprovalAnswer {
            tenant: self.tenant.clone(),
            approval: request.id.clone(),
            request: approval.digest(),
            approver: self.name.clone(),
            at: SystemClock::new().now().wall,
            expires,
            decision,
            comment: comment.to_owned(),
        };
        let subject = Subject::ApprovalAnswer {
            part: approval.part().clone(),
            approval: request.id.clone(),
            approver: self.name.clone(),
        };
        let store = Store {
            subject: subject.of(&self.tenant),
            payload: encode(&Signed::new(&answer, &self.key)),
            message_id: None,
            fence: Fence::None,
            ttl_secs: None,
        };
        self.bus.store(&store, REPLY_TIMEOUT).await.context("the answer was not stored")?;
        Ok(())
    }

    /// Signs what the approver lets pass, and publishes it.
    ///
    /// # Errors
    /// If it is not an approver's profile, or the stream does not take it.
    pub async fn sign_act(&self, act: &LabelAct, subject: &Subject) -> Result<()> {
        self.check_approver()?;
        let store = Store {
            subject: subject.of(&self.tenant),
            payload: encode(&Signed::new(act, &self.key)),
            message_id: None,
            fence: Fence::None,
            ttl_secs: None,
        };
        self.bus.store(&store, REPLY_TIMEOUT).await.context("it was not stored")?;
        Ok(())
    }

    /// Refuses an operator's profile where an approver's is needed.
    ///
    /// # Errors
    /// Which profile it is and what to do.
    pub fn check_approver(&self) -> Result<()> {
        if !self.is_approver {
            bail!(
                "`{}` is an operator's profile; approvals are answered with an approver's: name one with `--profile`",
                self.name
            );
        }
        Ok(())
    }

    /// The operator's or approver's name.
    #[must_use]
    pub fn name(&self) -> &OperatorId {
        &self.name
    }

    /// Reads the records of a part, all or of one task, from a sequence on.
    ///
    /// # Errors
    /// If the stream cannot be read.
    pub async fn audit_tail(&self, part: &PartId, task: Option<&TaskId>, from: u64) -> Result<Tail> {
        let subject = match task {
            Some(task) => filter::records_of_task(&self.tenant, part, task),
            None => filter::audit(&self.tenant, part),
        };
        Ok(self.bus.tail(&part_stream(&self.tenant, part), &subject, from).await?)
    }

    /// The bus, for looking at streams.
    #[must_use]
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// The tenant.
    #[must_use]
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Closes the connection.
    pub async fn close(self) {
        self.bus.close().await;
    }
}

/// A record of the stream, with what can be said about who signed it.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Stream sequence.
    pub sequence: u64,
    /// The record, if the bytes are one.
    pub record: Option<Record>,
    /// What is wrong with it: a foreign signature, a name that is not the signer's.
    pub fault: Option<String>,
}

impl Recorded {
    /// Opens a message of the audit stream against the keys control state knows.
    #[must_use]
    pub fn open(sequence: u64, payload: &[u8], control: &ControlState) -> Self {
        let fault = |record, text: String| Self { sequence, record, fault: Some(text) };
        let signed: Signed<Record> = match decode(payload) {
            Ok(signed) => signed,
            Err(error) => return fault(None, error.to_string()),
        };
        let Ok(claimed) = signed.peek() else { return fault(None, "not a record".to_owned()) };
        // Only a key enrolled for the very name the record bears makes it that one's word.
        match signed.open(|signer| control.is_record_key(&claimed.id.origin, signer)) {
            Ok(record) => Self { sequence, record: Some(record), fault: None },
            Err(error) => fault(Some(claimed), format!("{}: {error}", ReasonCode::AuditBadSignature)),
        }
    }

    /// Its class, if it is a record.
    #[must_use]
    pub fn kind(&self) -> Option<RecordKind> {
        self.record.as_ref().map(Record::kind)
    }
}
