//! An issuer's public keys: JWK sets (RFC 7517 section 5), as real issuers write them.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{DecodingKey, jwk::Jwk};
use serde::Deserialize;
use serde_json::Value;

use crate::jwt::IssuerError;

/// Most bytes of a JWK set.
pub const SET_BYTES_MAX: usize = 256 * 1024;
/// Most keys of a set; issuers have a handful.
const KEYS_MAX: usize = 64;
/// Shortest RSA modulus (RFC 7518 section 3.3: 2048 bits), in bytes.
const RSA_BYTES_MIN: usize = 256;
/// The members that make a key (RFC 7518 section 6). Nothing else of it is handed to the library: what it does not
/// know of `alg` or `use` must not make a whole set unreadable.
const KEY_MEMBERS: [&str; 6] = ["crv", "e", "kty", "n", "x", "y"];

/// A key that signatures are verified with.
#[derive(Clone, Debug)]
pub struct VerifyingKey {
    /// The key.
    pub key: DecodingKey,
    /// The one algorithm it is for, if the set says so.
    pub algorithm: Option<String>,
}

/// Keys by their id.
#[derive(Clone, Debug)]
pub struct KeySet(BTreeMap<String, VerifyingKey>);

#[derive(Deserialize)]
struct Set {
    keys: Vec<BTreeMap<String, Value>>,
}

impl KeySet {
    /// Reads a set. Keys for encryption, symmetric ones and those of unknown types may stand beside ours; they are
    /// never used.
    ///
    /// # Errors
    /// [`IssuerError::Keys`]: it is no set, is too large, names a key twice or not at all, holds a private or a weak
    /// key, or none that can be used.
    pub fn parse(text: &str) -> Result<Self, IssuerError> {
        let bad = |why: String| IssuerError::Keys(why);
        if text.len() > SET_BYTES_MAX {
            return Err(bad(format!("is longer than {} KiB", SET_BYTES_MAX / 1024)));
        }
        let set: Set = serde_json::from_str(text).map_err(|error| bad(format!("is no JWK set: {error}")))?;
        if set.keys.len() > KEYS_MAX {
            return Err(bad(format!("holds more than {KEYS_MAX} keys")));
        }
        let mut keys = BTreeMap::new();
        for mut members in set.keys {
            if !is_for_us(&members) {
                continue;
            }
            let kid = members.get("kid").and_then(Value::as_str).map(str::to_owned);
            let kid = kid.ok_or_else(|| bad("holds a key without `kid`".to_owned()))?;
            if members.contains_key("d") {
                return Err(bad(format!("holds the private key `{kid}`")));
            }
            let algorithm = members.get("alg").and_then(Value::as_str).map(str::to_owned);
            members.retain(|name, _| KEY_MEMBERS.contains(&name.as_str()));
            let key = read_key(members).map_err(|why| bad(format!("holds a broken key `{kid}`: {why}")))?;
            if keys.insert(kid.clone(), VerifyingKey { key, algorithm }).is_some() {
                return Err(bad(format!("names the key `{kid}` twice")));
            }
        }
        if keys.is_empty() { Err(bad("holds no key that can be used".to_owned())) } else { Ok(Self(keys)) }
    }

    /// The key a token names; an issuer with a single key may leave the name out.
    #[must_use]
    pub fn find(&self, kid: Option<&str>) -> Option<&VerifyingKey> {
        match kid {
            Some(kid) => self.0.get(kid),
            None if self.0.len() == 1 => self.any(),
            None => None,
        }
    }

    /// Some key.
    #[must_use]
    pub fn any(&self) -> Option<&VerifyingKey> {
        self.0.values().next()
    }
}

/// Whether it is a key for signatures of a type we know.
fn is_for_us(members: &BTreeMap<String, Value>) -> bool {
    let text = |name: &str| members.get(name).and_then(Value::as_str);
    let known = match text("kty") {
        Some("RSA") => true,
        Some("EC") => matches!(text("crv"), Some("P-256" | "P-384")),
        Some("OKP") => text("crv") == Some("Ed25519"),
        _ => false,
    };
    let verifies = match members.get("key_ops") {
        Some(Value::Array(operations)) => operations.iter().any(|one| one.as_str() == Some("verify")),
        _ => true,
    };
    known && verifies && text("use").is_none_or(|purpose| purpose == "sig")
}

fn read_key(members: BTreeMap<String, Value>) -> Result<DecodingKey, String> {
    if let Some(modulus) = members.get("n").and_then(Value::as_str) {
        let bytes = URL_SAFE_NO_PAD.decode(modulus).map_err(|error| error.to_string())?;
        if bytes.iter().skip_while(|byte| **byte == 0).count() < RSA_BYTES_MIN {
            return Err(format!("its modulus has less than {} bits", RSA_BYTES_MIN * 8));
        }
    }
    let jwk: Jwk = serde_json::from_value(Value::Object(members.into_iter().collect()))
        .map_err(|error| error.to_string())?;
    DecodingKey::from_jwk(&jwk).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

    fn parsed(keys: &Value) -> Result<Vec<String>, String> {
        KeySet::parse(&json!({ "keys": keys }).to_string())
            .map(|set| set.0.into_keys().collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn sets_as_real_issuers_write_them() {
        let modulus = URL_SAFE_NO_PAD.encode([0xc5; 256]);
        let keys = json!([
            // Entra leaves `alg` out and adds members of its own.
            {"kty": "RSA", "use": "sig", "kid": "entra", "n": modulus, "e": "AQAB", "x5t": "t", "x5c": ["c"],
             "issuer": "https://login.microsoftonline.com/x/v2.0"},
            // Keycloak lists a key for encryption beside the one for signatures.
            {"kty": "RSA", "use": "enc", "alg": "RSA-OAEP", "kid": "enc", "n": modulus, "e": "AQAB"},
            {"kty": "OKP", "crv": "Ed25519", "x": X, "kid": "ed", "use": "sig", "alg": "EdDSA"},
            {"kty": "OKP", "crv": "X25519", "x": X, "kid": "agreement"},
            {"kty": "EC", "crv": "secp256k1", "x": X, "y": X, "kid": "other curve"},
            {"kty": "oct", "k": "c2VjcmV0", "kid": "hmac"},
            {"kty": "AKP", "alg": "ML-DSA-65", "pub": "x", "kid": "of the future"},
        ]);
        assert_eq!(parsed(&keys), Ok(vec!["ed".to_owned(), "entra".to_owned()]));
    }

    #[test]
    fn sets_that_are_refused_whole() {
        let good = json!({"kty": "OKP", "crv": "Ed25519", "x": X, "kid": "a"});
        for (keys, why) in [
            (json!([]), "no key that can be used"),
            (json!([good, good]), "names the key `a` twice"),
            (json!([{"kty": "OKP", "crv": "Ed25519", "x": X}]), "without `kid`"),
            (json!([{"kty": "OKP", "crv": "Ed25519", "x": X, "d": X, "kid": "a"}]), "private key `a`"),
            (
                json!([{"kty": "RSA", "n": URL_SAFE_NO_PAD.encode([0xc5; 128]), "e": "AQAB", "kid": "a"}]),
                "2048 bits",
            ),
            (json!(vec![good.clone(); KEYS_MAX + 1]), "more than 64 keys"),
            (json!([good, "x"]), "no JWK set"),
        ] {
            let said = parsed(&keys).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
        assert!(KeySet::parse(&" ".repeat(SET_BYTES_MAX + 1)).unwrap_err().to_string().contains("256 KiB"));
    }
}
