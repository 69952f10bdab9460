//! Users' tokens: JWTs (RFC 7519) verified by the rules of RFC 8725 and 9068.
//!
//! The library checks the signature, with keys that come from the configuration or, by its word, from the issuer. What a claim has to be is checked
//! here, against the time that is passed in: by default the library accepts tokens without `aud` or `iss`, ignores
//! `nbf`, `typ` and `crit`, and reads the clock itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, Validation, errors::ErrorKind};
use writ_common::{
    ids::{RoleId, UserId, UserKind},
    json::Value,
    reason::{Reason, ReasonCode},
    time::{Millis, Monotonic, Now, Timestamp},
};

use crate::{
    jwks::{KeySet, VerifyingKey},
    key_cache::{KeyCache, NoKey},
    oidc::KeySource,
};

/// How far clocks of issuer and broker may be apart.
pub const LEEWAY: Millis = Millis(5_000);
/// Longest token, in bytes.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// A user the identity provider vouches for; [`UserId::kind`] says whether it is a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedUser {
    /// Who.
    pub user: UserId,
    /// The roles the claims map to.
    pub roles: Vec<RoleId>,
    /// When the token ends.
    pub expires: Timestamp,
}

/// Verifies users' tokens.
pub trait IdentityProvider: Send {
    /// The user a token speaks for.
    ///
    /// # Errors
    /// [`Unverified`].
    fn verify(&mut self, token: &str, now: Now) -> Result<VerifiedUser, Unverified>;

    /// The issuers whose keys are to be fetched now; each counts as being fetched until
    /// [`IdentityProvider::fetched`].
    fn due(&mut self, now: Now) -> Vec<(IssuerRef, Arc<KeySource>)>;

    /// Keys came, or not.
    fn fetched(&mut self, issuer: IssuerRef, keys: Option<KeySet>);

    /// Issuers whose keys are fetched, with the age of those held.
    fn key_ages(&self, now: Now) -> Vec<(String, Option<Millis>)>;
}

/// Names an issuer: its place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IssuerRef(pub usize);

/// A token that speaks for nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unverified {
    /// Why: of the `jwt.*` group.
    pub reason: Reason,
    /// The issuer whose next keys may make a difference.
    pub awaits: Option<IssuerRef>,
}

impl From<Reason> for Unverified {
    fn from(reason: Reason) -> Self {
        Self { reason, awaits: None }
    }
}

impl From<ReasonCode> for Unverified {
    fn from(code: ReasonCode) -> Self {
        Reason::from(code).into()
    }
}

/// One configured issuer with its keys.
pub struct Issuer {
    /// `iss` of its tokens.
    pub issuer: String,
    /// `aud` they must name.
    pub audience: String,
    /// `typ` of their header, without `application/`.
    pub typ: String,
    /// Algorithms they may be signed with; of one family.
    pub algorithms: Vec<Algorithm>,
    /// JSON Pointer of the claim that holds groups or roles.
    pub role_claim: String,
    /// Values of that claim, and the roles they mean.
    pub roles: BTreeMap<String, RoleId>,
    /// Its keys.
    pub keys: Keys,
    /// Its clients that may speak for themselves.
    pub services: Vec<Service>,
    /// Claims that only tokens of clients have: JSON Pointer, and the value, which may begin or end with `*`.
    pub service_marks: Vec<(String, String)>,
}

/// Where an issuer's keys are.
pub enum Keys {
    /// In the configuration: the same until the next start.
    Fixed(KeySet),
    /// With the issuer.
    Fetched {
        /// Those known now.
        cache: KeyCache,
        /// Where they come from.
        source: Arc<KeySource>,
    },
}

/// A client of the issuer's that may start tasks by itself (grant type `client_credentials`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name: `client_id` or whatever else the issuer calls it.
    pub client: String,
    /// `sub` of its tokens.
    pub subject: String,
    /// Its roles; claims give it none.
    pub roles: Vec<RoleId>,
}

/// Claims that name the client a token was given to: RFC 9068, OpenID Connect, and two of widespread issuers.
const CLIENT_CLAIMS: [&str; 4] = ["appid", "azp", "cid", "client_id"];

/// Why an issuer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// The algorithms are not usable.
    #[error("{0}")]
    Algorithms(String),
    /// The key set is not usable.
    #[error("the key set {0}")]
    Keys(String),
}

/// Parses the algorithms of an issuer: asymmetric, and all of one family.
///
/// # Errors
/// [`IssuerError::Algorithms`].
pub fn parse_algorithms(names: &[String]) -> Result<Vec<Algorithm>, IssuerError> {
    let mut families = BTreeSet::new();
    let mut algorithms = Vec::new();
    for name in names {
        let (algorithm, family) = match name.as_str() {
            "RS256" => (Algorithm::RS256, "RSA"),
            "RS384" => (Algorithm::RS384, "RSA"),
            "RS512" => (Algorithm::RS512, "RSA"),
            "PS256" => (Algorithm::PS256, "RSA"),
            "PS384" => (Algorithm::PS384, "RSA"),
            "PS512" => (Algorithm::PS512, "RSA"),
            "ES256" => (Algorithm::ES256, "EC"),
            "ES384" => (Algorithm::ES384, "EC"),
            "EdDSA" => (Algorithm::EdDSA, "Ed"),
            name if name.starts_with("HS") => {
                let why = format!(
                    "`{name}` would let the broker's public keys sign tokens; use RS256, ES256 or EdDSA"
                );
                return Err(IssuerError::Algorithms(why));
            }
            _ => {
                let why = format!("`{name}` is no algorithm; there are RS256, PS256, ES256, ES384, EdDSA");
                return Err(IssuerError::Algorithms(why));
            }
        };
        families.insert(family);
        algorithms.push(algorithm);
    }
    match families.len() {
        0 => Err(IssuerError::Algorithms("at least one algorithm is needed".to_owned())),
        1 => Ok(algorithms),
        _ => Err(IssuerError::Algorithms("the algorithms are of different families".to_owned())),
    }
}

/// The configured issuers.
pub struct Issuers(pub Vec<Issuer>);

impl IdentityProvider for Issuers {
    fn verify(&mut self, token: &str, now: Now) -> Result<VerifiedUser, Unverified> {
        let format = |why: &str| Reason::new(ReasonCode::JwtFormat).told(why);
        if token.len() > TOKEN_BYTES_MAX {
            return Err(format("the token is longer than 16 KiB").into());
        }
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(format("the token does not have three parts").into());
        };
        let header = json_part(header).ok_or_else(|| format("the header is not readable"))?;
        let claims = json_part(payload).ok_or_else(|| {
            Reason::new(ReasonCode::JwtClaims).told("the claims are not readable, or one is named twice")
        })?;
        check_header(&header)?;
        // The issuer is only looked up by what the token claims; its keys then have to agree.
        let issuer = match claims.get("iss") {
            Some(Value::String(iss)) => {
                self.0.iter_mut().enumerate().find(|(_, issuer)| issuer.issuer == *iss)
            }
            None if writ_common::red::off("J10") => self.0.iter_mut().enumerate().next(),
            _ => None,
        };
        let (position, issuer) = issuer.ok_or(ReasonCode::JwtIssuer)?;
        // Claims are cheap, and what they rule out does not make us ask the issuer for keys.
        let expires = issuer.check_claims(&claims, now.wall)?;
        issuer.check_signature(token, &header, now.monotonic).map_err(|reason| {
            let no_key = matches!(reason.code(), ReasonCode::JwtKeysStale | ReasonCode::JwtUnknownKey);
            let awaits = (no_key && issuer.may_learn(now.monotonic)).then_some(IssuerRef(position));
            Unverified { reason, awaits }
        })?;
        Ok(issuer.user(&claims, expires)?)
    }

    fn due(&mut self, now: Now) -> Vec<(IssuerRef, Arc<KeySource>)> {
        let issuers = self.0.iter_mut().enumerate();
        let due = issuers.filter_map(|(position, issuer)| {
            let Keys::Fetched { cache, source } = &mut issuer.keys else { return None };
            cache.begin(now.monotonic).then(|| (IssuerRef(position), Arc::clone(source)))
        });
        due.collect()
    }

    fn fetched(&mut self, issuer: IssuerRef, keys: Option<KeySet>) {
        if let Some(Issuer { keys: Keys::Fetched { cache, .. }, .. }) = self.0.get_mut(issuer.0) {
            cache.fetched(keys);
        }
    }

    fn key_ages(&self, now: Now) -> Vec<(String, Option<Millis>)> {
        let ages = self.0.iter().filter_map(|issuer| match &issuer.keys {
            Keys::Fetched { cache, .. } => Some((issuer.issuer.clone(), cache.age(now.monotonic))),
            Keys::Fixed(_) => None,
        });
        ages.collect()
    }
}

/// Decodes base64url without padding (RFC 7515 section 2), then JSON without duplicate keys.
fn json_part(part: &str) -> Option<Value> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    Value::parse(std::str::from_utf8(&bytes).ok()?).ok()
}

/// Nothing in a header may choose a key, and nothing in it may be critical, since no extension is known here.
fn check_header(header: &Value) -> Result<(), Reason> {
    if header.get("crit").is_some() && !writ_common::red::off("J07") {
        return Err(ReasonCode::JwtCritical.into());
    }
    let foreign = ["jku", "jwk", "x5c", "x5t", "x5u"].into_iter().find(|name| header.get(name).is_some());
    match foreign {
        Some(name) if !writ_common::red::off("J06") => {
            Err(Reason::new(ReasonCode::JwtHeader).told(format_args!("the header holds `{name}`")))
        }
        _ => Ok(()),
    }
}

impl Issuer {
    /// Whether its keys may be others in a moment.
    fn may_learn(&self, now: Monotonic) -> bool {
        matches!(&self.keys, Keys::Fetched { cache, .. } if cache.may_learn(now))
    }

    fn key(&mut self, kid: Option<&str>, now: Monotonic) -> Result<&VerifyingKey, Reason> {
        match &mut self.keys {
            Keys::Fixed(keys) => {
                let found = keys.find(kid);
                let found = if writ_common::red::off("J05") { found.or(keys.any()) } else { found };
                found.ok_or(ReasonCode::JwtUnknownKey.into())
            }
            Keys::Fetched { cache, .. } => cache.find(kid, now).map_err(|no_key| match no_key {
                NoKey::Stale => ReasonCode::JwtKeysStale.into(),
                NoKey::Unknown => ReasonCode::JwtUnknownKey.into(),
            }),
        }
    }

    fn check_signature(&mut self, token: &str, header: &Value, now: Monotonic) -> Result<(), Reason> {
        let alg = header.get("alg").and_then(Value::as_str).unwrap_or_default();
        let known = self.algorithms.iter().any(|algorithm| format!("{algorithm:?}") == alg);
        if !known {
            return Err(ReasonCode::JwtAlgorithm.into());
        }
        let typ = header.get("typ").and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase();
        let typ = typ.strip_prefix("application/").unwrap_or(&typ);
        if typ != self.typ.to_ascii_lowercase() && !writ_common::red::off("J08") {
            return Err(Reason::new(ReasonCode::JwtType).told(format_args!("expected `{}`", self.typ)));
        }
        let kid = header.get("kid").and_then(Value::as_str);
        let algorithms = self.algorithms.clone();
        let VerifyingKey { key, algorithm } = self.key(kid, now)?;
        // A key is for the algorithm it was published for and no other (RFC 8725 section 3.1).
        if algorithm.as_ref().is_some_and(|of_key| of_key != alg) {
            return Err(Reason::new(ReasonCode::JwtAlgorithm).told("the key is for another algorithm"));
        }
        let mut validation = Validation::new(algorithms.first().copied().unwrap_or(Algorithm::EdDSA));
        validation.algorithms = algorithms;
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        match jsonwebtoken::decode::<serde_json::Value>(token, key, &validation) {
            Ok(_) => Ok(()),
            Err(error) => Err(match error.kind() {
                ErrorKind::InvalidAlgorithm
                | ErrorKind::UnsupportedAlgorithm
                | ErrorKind::MissingAlgorithm => ReasonCode::JwtAlgorithm.into(),
                ErrorKind::InvalidSignature => ReasonCode::JwtSignature.into(),
                ErrorKind::InvalidKeyFormat => ReasonCode::JwtAlgorithm.into(),
                _ => Reason::new(ReasonCode::JwtFormat).noted(error),
            }),
        }
    }

    /// Whether a token was given to a client for itself. RFC 9068 section 2.2 has `sub` name the client then; what
    /// other issuers do stands in the configuration.
    fn speaks_for_a_client(&self, claims: &Value, subject: Option<&str>, clients: &[&str]) -> bool {
        let names_itself = match subject {
            Some(subject) => {
                clients.contains(&subject) || self.services.iter().any(|service| service.subject == subject)
            }
            None => !clients.is_empty(),
        };
        names_itself || self.service_marks.iter().any(|mark| is_marked(claims, mark))
    }

    fn check_claims(&self, claims: &Value, now: Timestamp) -> Result<Timestamp, Reason> {
        let names_us = match claims.get("aud") {
            Some(Value::String(aud)) => *aud == self.audience,
            Some(Value::Array(list)) => list.iter().any(|aud| aud.as_str() == Some(&self.audience)),
            None => writ_common::red::off("J09"),
            _ => false,
        };
        if !names_us && !writ_common::red::off("J11") {
            return Err(ReasonCode::JwtAudience.into());
        }
        let expires = numeric_date(claims, "exp", ReasonCode::JwtExpired)?;
        let expires = match expires {
            Some(expires) if now < expires.after(LEEWAY) => expires,
            Some(expires) if writ_common::red::off("J13") => expires,
            Some(expires) => {
                return Err(Reason::new(ReasonCode::JwtExpired).told(format_args!("it ended at {expires}")));
            }
            None => return Err(Reason::new(ReasonCode::JwtExpired).told("it never ends")),
        };
        if let Some(begins) = numeric_date(claims, "nbf", ReasonCode::JwtNotBefore)?
            && begins > now.after(LEEWAY)
            && !writ_common::red::off("J14")
        {
            return Err(Reason::new(ReasonCode::JwtNotBefore).told(format_args!("it begins at {begins}")));
        }
        if let Some(issued) = numeric_date(claims, "iat", ReasonCode::JwtIssuedAt)?
            && issued > now.after(LEEWAY)
            && !writ_common::red::off("J15")
        {
            return Err(Reason::new(ReasonCode::JwtIssuedAt).told(format_args!("it was issued at {issued}")));
        }
        Ok(expires)
    }

    fn user(&self, claims: &Value, expires: Timestamp) -> Result<VerifiedUser, Reason> {
        let malformed = |why: String| Reason::new(ReasonCode::JwtClaims).told(why);
        let subject = claims.get("sub").and_then(Value::as_str);
        let clients: Vec<&str> =
            CLIENT_CLAIMS.iter().filter_map(|name| claims.get(name).and_then(Value::as_str)).collect();
        let is_of = |service: &&Service| {
            clients.contains(&service.client.as_str()) && subject == Some(service.subject.as_str())
        };
        if let Some(service) = self.services.iter().find(is_of) {
            let user = UserId::service(self.issuer.as_str(), &service.client)
                .map_err(|error| malformed(error.to_string()))?;
            return Ok(VerifiedUser { user, roles: service.roles.clone(), expires });
        }
        if self.speaks_for_a_client(claims, subject, &clients) && !writ_common::red::off("J08-service") {
            return Err(ReasonCode::JwtService.into());
        }
        let subject = subject.ok_or_else(|| malformed("`sub` is absent".into()))?;
        let user =
            UserId::parse(self.issuer.as_str(), subject).map_err(|error| malformed(error.to_string()))?;
        if user.kind() != UserKind::Human {
            return Err(malformed(format!("`sub` `{subject}` is the form of a service's id")));
        }
        let mut roles = BTreeSet::new();
        for value in texts_at(claims, &self.role_claim) {
            roles.extend(self.roles.get(value).cloned());
        }
        Ok(VerifiedUser { user, roles: roles.into_iter().collect(), expires })
    }
}

/// Whether a claim is what a mark says: the same text, or one that begins or ends like it.
fn is_marked(claims: &Value, (pointer, value): &(String, String)) -> bool {
    texts_at(claims, pointer).into_iter().any(|text| {
        match (value.strip_prefix('*'), value.strip_suffix('*')) {
            (Some(end), _) => text.ends_with(end),
            (_, Some(start)) => text.starts_with(start),
            _ => text == value,
        }
    })
}

/// A `NumericDate` (RFC 7519 section 2); fractions of a second are dropped.
fn numeric_date(claims: &Value, name: &str, code: ReasonCode) -> Result<Option<Timestamp>, Reason> {
    /// The last second of the year 9999.
    const LATEST: u64 = 253_402_300_799;
    match claims.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => {
            let whole = number.as_str().split('.').next().unwrap_or_default();
            match whole.parse::<u64>() {
                Ok(secs) if secs <= LATEST => Ok(Some(Timestamp::from_secs(secs))),
                _ => Err(Reason::new(code).told(format_args!("`{name}` is out of range"))),
            }
        }
        Some(_) => Err(Reason::new(code).told(format_args!("`{name}` is no number"))),
    }
}

/// The texts a JSON Pointer (RFC 6901) leads to: one text, or a list of them.
fn texts_at<'a>(claims: &'a Value, pointer: &str) -> Vec<&'a str> {
    let mut value = claims;
    for token in pointer.split('/').skip(1) {
        let key = token.replace("~1", "/").replace("~0", "~");
        let Some(next) = value.get(&key) else { return Vec::new() };
        value = next;
    }
    match value {
        Value::String(text) => vec![text],
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::json;

    use super::*;

    // Test keys made for this file: Ed25519 (RFC 8037 appendix A) and P-256 (RFC 7515 appendix A.3).
    const ED_SEED: [u8; 32] = [
        0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44,
        0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
    ];
    const ED_X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    const NOW: u64 = 1_800_000_000;

    fn now() -> Timestamp {
        Timestamp::from_secs(NOW)
    }

    fn ed_key() -> EncodingKey {
        // PKCS#8 (RFC 8410 section 7) around the seed.
        let mut der = hex::decode("302e020100300506032b657004220420").unwrap();
        der.extend(ED_SEED);
        EncodingKey::from_ed_der(&der)
    }

    fn issuers() -> Issuers {
        let jwks = json!({"keys": [
            {"kty": "OKP", "crv": "Ed25519", "x": ED_X, "kid": "k1", "use": "sig", "alg": "EdDSA"},
            {"kty": "oct", "k": "c2VjcmV0", "kid": "hmac"},
        ]});
        Issuers(vec![Issuer {
            issuer: "https://idp.example".into(),
            audience: "writ".into(),
            typ: "at+jwt".into(),
            algorithms: vec![Algorithm::EdDSA],
            role_claim: "/groups".into(),
            roles: [("sg-analysts".to_owned(), RoleId::parse("analyst").unwrap())].into(),
            keys: Keys::Fixed(KeySet::parse(&jwks.to_string()).unwrap()),
            services: vec![
                Service {
                    client: "nightly".into(),
                    subject: "nightly".into(),
                    roles: vec![RoleId::parse("reporter").unwrap()],
                },
                Service { client: "weekly".into(), subject: "0b6d-uuid".into(), roles: vec![] },
            ],
            service_marks: vec![
                ("/idtyp".into(), "app".into()),
                ("/preferred_username".into(), "service-account-*".into()),
                ("/sub".into(), "*@clients".into()),
            ],
        }])
    }

    fn moment() -> Now {
        Now { wall: now(), monotonic: Monotonic::from_millis(0) }
    }

    fn claims() -> serde_json::Value {
        json!({
            "iss": "https://idp.example", "aud": ["writ", "other"], "sub": "alice", "exp": NOW + 300,
            "nbf": NOW - 1, "iat": NOW - 1, "groups": ["sg-analysts", "sg-unknown"],
        })
    }

    fn header() -> serde_json::Value {
        json!({"alg": "EdDSA", "typ": "at+jwt", "kid": "k1"})
    }

    fn b64(text: &str) -> String {
        URL_SAFE_NO_PAD.encode(text)
    }

    /// A token whose signature is right whatever header and claims say.
    fn signed(header: &str, claims: &str) -> String {
        let message = format!("{}.{}", b64(header), b64(claims));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &ed_key(), Algorithm::EdDSA).unwrap();
        format!("{message}.{signature}")
    }

    fn verify(header: &serde_json::Value, claims: &serde_json::Value) -> Result<VerifiedUser, ReasonCode> {
        verify_text(&signed(&header.to_string(), &claims.to_string()))
    }

    fn verify_text(token: &str) -> Result<VerifiedUser, ReasonCode> {
        issuers().verify(token, moment()).map_err(|unverified| unverified.reason.code())
    }

    #[test]
    fn j08_a_service_is_its_client_and_subject_together_and_never_a_person() {
        let of = |changes: serde_json::Value| {
            let mut token = claims();
            for (name, value) in changes.as_object().unwrap() {
                token = with(token, name, value.clone());
            }
            verify(&header(), &token)
        };
        // RFC 9068: `sub` is the client. Roles come from the configuration, whatever the claims say.
        let nightly = of(json!({"sub": "nightly", "client_id": "nightly"})).unwrap();
        assert_eq!(nightly.user, UserId::service("https://idp.example", "nightly").unwrap());
        assert_eq!(nightly.roles, [RoleId::parse("reporter").unwrap()]);
        assert!(!nightly.user.may_approve());
        let weekly =
            of(json!({"sub": "0b6d-uuid", "azp": "weekly", "preferred_username": "service-account-weekly"}));
        assert_eq!(weekly.unwrap().user.subject(), "service:weekly");
        // A person who logged in through the same client is a person.
        let alice = of(json!({"client_id": "nightly", "azp": "nightly"})).unwrap();
        assert_eq!((alice.user.subject(), alice.roles.len()), ("alice", 1));
        for unlisted in [
            json!({"sub": "other", "client_id": "other"}),
            json!({"sub": "other", "cid": "other"}),
            json!({"sub": null, "azp": "nightly"}),
            // Listed, under another subject or client.
            json!({"sub": "0b6d-uuid", "client_id": "nightly"}),
            json!({"sub": "nightly"}),
            json!({"sub": "x@clients", "client_id": "x"}),
            json!({"sub": "9c1e-uuid", "azp": "x", "idtyp": "app"}),
            json!({"sub": "9c1e-uuid", "azp": "x", "preferred_username": "service-account-x"}),
        ] {
            assert_eq!(of(unlisted.clone()), Err(ReasonCode::JwtService), "{unlisted}");
        }
        // Nobody can be called what services are called.
        assert_eq!(of(json!({"sub": "service:nightly"})), Err(ReasonCode::JwtClaims));
    }

    #[test]
    fn j17_keys_that_may_come_are_awaited_and_others_are_not() {
        let source = KeySource::new("http://127.0.0.1:1", crate::oidc::KeyLocation::Discovery, None).unwrap();
        let bounds = crate::key_cache::KeyBounds {
            refresh: Millis::from_secs(300),
            age_max: Millis::from_secs(3_600),
        };
        let mut issuers = issuers();
        let fixed =
            std::mem::replace(&mut issuers.0[0].keys, Keys::Fetched { cache: KeyCache::new(bounds), source });
        let Keys::Fixed(keys) = fixed else { panic!("keys of a file") };
        let token = signed(&header().to_string(), &claims().to_string());
        let later = |secs: u64| Now { monotonic: Monotonic::from_millis(secs * 1_000), ..moment() };
        let refused = |refused: Result<VerifiedUser, Unverified>| {
            let refused = refused.unwrap_err();
            (refused.reason.code(), refused.awaits)
        };
        let awaited = Some(IssuerRef(0));
        assert_eq!(refused(issuers.verify(&token, later(0))), (ReasonCode::JwtKeysStale, awaited));
        assert_eq!(issuers.due(later(0)).len(), 1);
        assert_eq!(issuers.due(later(0)).len(), 0, "it is under way");
        issuers.fetched(IssuerRef(0), Some(keys));
        assert!(issuers.verify(&token, later(1)).is_ok());
        let strange = signed(&with(header(), "kid", json!("k2")).to_string(), &claims().to_string());
        assert_eq!(
            refused(issuers.verify(&strange, later(1))),
            (ReasonCode::JwtUnknownKey, None),
            "just fetched"
        );
        assert_eq!(refused(issuers.verify(&strange, later(11))), (ReasonCode::JwtUnknownKey, awaited));
        // What is refused for another reason asks for no keys.
        issuers.due(later(11));
        issuers.fetched(IssuerRef(0), None);
        let expired = with(claims(), "exp", json!(NOW - 60)).to_string();
        let expired = signed(&with(header(), "kid", json!("k2")).to_string(), &expired);
        assert_eq!(refused(issuers.verify(&expired, later(30))), (ReasonCode::JwtExpired, None));
        assert_eq!(refused(issuers.verify(&token, later(3_602))), (ReasonCode::JwtKeysStale, awaited));
    }

    fn with(mut value: serde_json::Value, key: &str, new: serde_json::Value) -> serde_json::Value {
        if new.is_null() {
            value.as_object_mut().unwrap().remove(key);
        } else {
            value[key] = new;
        }
        value
    }

    #[test]
    fn a_good_token_gives_user_and_roles() {
        let user = verify(&header(), &claims()).unwrap();
        assert_eq!(user.user, UserId::parse("https://idp.example", "alice").unwrap());
        assert_eq!(user.roles, [RoleId::parse("analyst").unwrap()]);
    }

    #[test]
    fn j01_none_in_every_spelling() {
        for alg in ["none", "None", "NONE", "nOnE"] {
            let unsigned = format!(
                "{}.{}.",
                b64(&with(header(), "alg", json!(alg)).to_string()),
                b64(&claims().to_string())
            );
            assert_eq!(verify_text(&unsigned), Err(ReasonCode::JwtAlgorithm), "{alg}");
            assert_eq!(verify(&with(header(), "alg", json!(alg)), &claims()), Err(ReasonCode::JwtAlgorithm));
        }
    }

    #[test]
    fn j02_hmac_with_the_public_key_as_secret() {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("k1".into());
        header.typ = Some("at+jwt".into());
        let secret = EncodingKey::from_secret(&URL_SAFE_NO_PAD.decode(ED_X).unwrap());
        let token = encode(&header, &claims(), &secret).unwrap();
        assert_eq!(verify_text(&token), Err(ReasonCode::JwtAlgorithm));
    }

    #[test]
    fn j03_j04_algorithms_are_asymmetric_and_of_one_family() {
        let parse =
            |names: &[&str]| parse_algorithms(&names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert!(parse(&["RS256", "PS256"]).is_ok());
        for names in [&["HS256"][..], &["RS256", "HS256"], &["RS256", "ES256"], &["none"], &[]] {
            assert!(parse(names).is_err(), "{names:?}");
        }
        assert_eq!(verify(&with(header(), "alg", json!("ES256")), &claims()), Err(ReasonCode::JwtAlgorithm));
        assert_eq!(verify(&with(header(), "alg", json!("PS512")), &claims()), Err(ReasonCode::JwtAlgorithm));
    }

    #[test]
    fn j05_key_ids_are_looked_up_and_nothing_else() {
        for kid in ["../../etc/passwd", "' OR 1=1 --", "https://evil.example/jwks", "k2", "hmac", ""] {
            assert_eq!(
                verify(&with(header(), "kid", json!(kid)), &claims()),
                Err(ReasonCode::JwtUnknownKey),
                "{kid}"
            );
        }
        let key = json!({"kty": "OKP", "crv": "Ed25519", "x": ED_X, "kid": "k1"});
        assert!(KeySet::parse(&json!({"keys": [key, key]}).to_string()).is_err());
    }

    #[test]
    fn j06_headers_that_bring_a_key() {
        for name in ["jku", "x5u", "jwk", "x5c"] {
            assert_eq!(
                verify(&with(header(), name, json!("x")), &claims()),
                Err(ReasonCode::JwtHeader),
                "{name}"
            );
        }
    }

    #[test]
    fn j07_critical_extensions() {
        let header = with(with(header(), "crit", json!(["b64"])), "b64", json!(false));
        assert_eq!(verify(&header, &claims()), Err(ReasonCode::JwtCritical));
    }

    #[test]
    fn j08_other_classes_of_token() {
        for typ in ["JWT", "id+jwt", "secevent+jwt", "logout+jwt"] {
            assert_eq!(
                verify(&with(header(), "typ", json!(typ)), &claims()),
                Err(ReasonCode::JwtType),
                "{typ}"
            );
        }
        assert_eq!(verify(&with(header(), "typ", json!(null)), &claims()), Err(ReasonCode::JwtType));
        assert!(verify(&with(header(), "typ", json!("application/AT+JWT")), &claims()).is_ok());
    }

    #[test]
    fn j09_j10_j11_audience_and_issuer_must_be_there_and_right() {
        for (name, value, code) in [
            ("aud", json!(null), ReasonCode::JwtAudience),
            ("aud", json!("other"), ReasonCode::JwtAudience),
            ("aud", json!(["other"]), ReasonCode::JwtAudience),
            ("aud", json!(7), ReasonCode::JwtAudience),
            ("iss", json!(null), ReasonCode::JwtIssuer),
            ("iss", json!("https://evil.example"), ReasonCode::JwtIssuer),
            ("iss", json!(["https://idp.example"]), ReasonCode::JwtIssuer),
            ("sub", json!(null), ReasonCode::JwtClaims),
        ] {
            assert_eq!(
                verify(&header(), &with(claims(), name, value.clone())),
                Err(code),
                "{name} = {value}"
            );
        }
    }

    #[test]
    fn j12_expiry_must_be_a_sensible_number() {
        for exp in [json!(null), json!("1800000300"), json!(-1), json!(253_402_300_800_u64), json!(true)] {
            assert_eq!(
                verify(&header(), &with(claims(), "exp", exp.clone())),
                Err(ReasonCode::JwtExpired),
                "{exp}"
            );
        }
        let huge = claims().to_string().replace(&(NOW + 300).to_string(), "1e300");
        assert!(verify_text(&signed(&header().to_string(), &huge)).is_err());
    }

    #[test]
    fn j13_the_leeway_is_five_seconds() {
        assert!(verify(&header(), &with(claims(), "exp", json!(NOW - 4))).is_ok());
        assert_eq!(verify(&header(), &with(claims(), "exp", json!(NOW - 6))), Err(ReasonCode::JwtExpired));
    }

    #[test]
    fn j14_j15_not_before_and_issued_at() {
        assert_eq!(verify(&header(), &with(claims(), "nbf", json!(NOW + 60))), Err(ReasonCode::JwtNotBefore));
        assert_eq!(
            verify(&header(), &with(claims(), "iat", json!(NOW + 31_536_000))),
            Err(ReasonCode::JwtIssuedAt)
        );
    }

    #[test]
    fn j16_duplicate_claims() {
        let twice = claims().to_string().replacen('{', "{\"sub\":\"mallory\",", 1);
        assert_eq!(verify_text(&signed(&header().to_string(), &twice)), Err(ReasonCode::JwtClaims));
    }

    #[test]
    fn j18_only_strict_base64url() {
        let good = signed(&header().to_string(), &claims().to_string());
        assert!(verify_text(&good).is_ok());
        let (message, signature) = good.rsplit_once('.').unwrap();
        for bad in [
            format!("{good}="),
            format!("{good}\n"),
            format!(" {good}"),
            format!("{message}.{signature}=="),
            format!("{message}."),
            format!("{good}.x"),
            message.to_owned(),
            String::new(),
        ] {
            assert!(verify_text(&bad).is_err(), "{bad:?}");
        }
        let first = if signature.starts_with('A') { "B" } else { "A" };
        let forged = format!("{message}.{first}{}", signature.get(1..).unwrap());
        assert_eq!(verify_text(&forged), Err(ReasonCode::JwtSignature));
    }
}
