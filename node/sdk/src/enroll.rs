//! Enrolling a new key of an agent by a join token.

use std::time::Duration;

use writ_bus::{Bus, BusConfig, NatsUser, SystemClock};
use writ_common::{
    codec::{decode, encode},
    ids::KeyId,
    signed::Signed,
    subjects::Subject,
    wire::{EnrollReply, EnrollRequest},
};

use crate::{Error, Identity};

/// Enrolls the keys of `identity` with a join token, over the tenant's bootstrap user.
///
/// # Errors
/// [`Error::Denied`] if the token is unknown, used up, expired or for another agent.
pub async fn enroll(identity: &Identity, token: &str, bootstrap: NatsUser) -> Result<KeyId, Error> {
    let inbox_prefix = format!("_INBOX.bootstrap.{}", bootstrap.public());
    let bus = Bus::connect(BusConfig {
        urls: identity.bus_urls.clone(),
        user: bootstrap,
        name: format!("enroll {}", identity.agent),
        inbox_prefix,
        ca_file: identity.ca_file.clone(),
    })
    .await?;
    let request = EnrollRequest {
        tenant: identity.tenant.clone(),
        token: token.to_owned(),
        agent: identity.agent.clone(),
        holder: identity.holder.public(),
        connection: identity.user.public().to_owned(),
        at: SystemClock::new().now().wall,
    };
    let payload = encode(&Signed::new(&request, &identity.holder));
    let subject = Subject::Enroll.of(&identity.tenant);
    let reply = bus.request(subject, payload, None, Duration::from_secs(10)).await;
    bus.close().await;
    match decode(&reply?.payload).map_err(|error| Error::BadAnswer(error.to_string()))? {
        EnrollReply::Enrolled { key, .. } => Ok(key),
        EnrollReply::Refused { reason } => Err(Error::denied(vec![reason], None)),
    }
}
