//! Service account tokens: ES256 JSON Web Tokens with the claims that Kubernetes puts into them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::User;

/// The audience of tokens for the API server itself; also the issuer.
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Signs and verifies tokens.
pub(crate) struct TokenIssuer {
    key: EcdsaKeyPair,
    random: SystemRandom,
    key_id: String,
}

/// An object that a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bound {
    /// `pod`, `node` or `secret`: the claim's name.
    pub(crate) claim: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// What a verified token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenSubject {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) bound: Option<Bound>,
    pub(crate) audiences: Vec<String>,
    pub(crate) id: String,
}

impl TokenSubject {
    /// The user that the token stands for.
    pub(crate) fn user(&self) -> User {
        let mut user = User::new(
            format!("system:serviceaccount:{}:{}", self.namespace, self.name),
            &["system:serviceaccounts", &format!("system:serviceaccounts:{}", self.namespace)],
        );
        user.uid.clone_from(&self.uid);
        user.extra.insert("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("JTI={}", self.id)]);
        if let Some(bound) = self.bound.as_ref().filter(|bound| bound.claim != "secret") {
            user.extra.insert(format!("authentication.kubernetes.io/{}-name", bound.claim), vec![bound.name.clone()]);
            user.extra.insert(format!("authentication.kubernetes.io/{}-uid", bound.claim), vec![bound.uid.clone()]);
        }
        user
    }
}

impl TokenIssuer {
    /// An issuer with a PKCS#8 P-256 key; `None` if the bytes are no such key.
    pub(crate) fn new(pkcs8: &[u8]) -> Option<Self> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random).ok()?;
        let key_id = URL_SAFE_NO_PAD.encode(Sha256::digest(key.public_key().as_ref()));
        Some(Self { key, random, key_id })
    }

    /// A signed token good from `now` until `expires` (Unix seconds); `None` if the system has no randomness.
    pub(crate) fn issue(&self, subject: &TokenSubject, now: i64, expires: i64) -> Option<String> {
        let header = json!({"alg": "ES256", "kid": self.key_id});
        let mut kubernetes = json!({
            "namespace": subject.namespace,
            "serviceaccount": {"name": subject.name, "uid": subject.uid},
        });
        if let Some(bound) = &subject.bound {
            kubernetes[&bound.claim] = json!({"name": bound.name, "uid": bound.uid});
        }
        let claims = json!({
            "aud": subject.audiences,
            "exp": expires,
            "iat": now,
            "nbf": now,
            "iss": ISSUER,
            "jti": subject.id,
            "kubernetes.io": kubernetes,
            "sub": format!("system:serviceaccount:{}:{}", subject.namespace, subject.name),
        });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self.key.sign(&self.random, signed.as_bytes()).ok()?;
        Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Checks signature, times, issuer and audience. Whether the account and the bound object still exist is the
    /// caller's to check. The answer's audiences are those of `wanted` that the token has.
    pub(crate) fn verify(&self, token: &str, now: i64, wanted: &[String]) -> Option<TokenSubject> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let decode = |text: &str| -> Option<Value> { serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok() };
        if decode(header)?["alg"] != "ES256" {
            return None;
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).ok()?)
            .ok()?;
        let claims = decode(claims)?;
        if claims["iss"] != ISSUER || claims["exp"].as_i64()? <= now || claims["nbf"].as_i64()? > now + 60 {
            return None;
        }
        let own = [ISSUER.to_owned()];
        let wanted = if wanted.is_empty() { &own[..] } else { wanted };
        let has: Vec<&str> = claims["aud"].as_array()?.iter().filter_map(Value::as_str).collect();
        let audiences: Vec<String> =
            wanted.iter().filter(|audience| has.contains(&audience.as_str())).cloned().collect();
        if audiences.is_empty() {
            return None;
        }
        let kubernetes = &claims["kubernetes.io"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let bound = ["pod", "node", "secret"].into_iter().find_map(|claim| {
            let object = kubernetes.get(claim)?;
            Some(Bound { claim: claim.to_owned(), name: text(&object["name"])?, uid: text(&object["uid"])? })
        });
        Some(TokenSubject {
            namespace: text(&kubernetes["namespace"])?,
            name: text(&kubernetes["serviceaccount"]["name"])?,
            uid: text(&kubernetes["serviceaccount"]["uid"])?,
            bound,
            audiences,
            id: text(&claims["jti"]).unwrap_or_default(),
        })
    }

    /// The public key as a JSON Web Key Set.
    pub(crate) fn key_set(&self) -> Value {
        // An uncompressed point: 0x04, x, y.
        let point = self.key.public_key().as_ref();
        let (x, y) = point.get(1..).unwrap_or_default().split_at(point.len().saturating_sub(1) / 2);
        json!({"keys": [{
            "use": "sig",
            "kty": "EC",
            "kid": self.key_id,
            "crv": "P-256",
            "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x),
            "y": URL_SAFE_NO_PAD.encode(y),
        }]})
    }

    /// The OpenID Connect discovery document.
    pub(crate) fn configuration(server: &str) -> Value {
        json!({
            "issuer": ISSUER,
            "jwks_uri": format!("{server}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer() -> TokenIssuer {
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).expect("random");
        TokenIssuer::new(pkcs8.as_ref()).expect("key")
    }

    fn subject() -> TokenSubject {
        TokenSubject {
            namespace: "d".into(),
            name: "x".into(),
            uid: "u".into(),
            bound: Some(Bound { claim: "pod".into(), name: "p".into(), uid: "pu".into() }),
            audiences: vec![ISSUER.into(), "vault".into()],
            id: "1".into(),
        }
    }

    #[test]
    fn a_token_is_good_for_its_audiences_and_time_only() {
        let (issuer, other) = (issuer(), issuer());
        let token = issuer.issue(&subject(), 1000, 2000).expect("token");
        assert_eq!(issuer.verify(&token, 1500, &[]).expect("good").audiences, [ISSUER]);
        assert_eq!(issuer.verify(&token, 1500, &["vault".into(), "other".into()]).expect("good").audiences, ["vault"]);
        assert!(issuer.verify(&token, 1500, &["other".into()]).is_none());
        assert!(issuer.verify(&token, 2000, &[]).is_none());
        assert!(other.verify(&token, 1500, &[]).is_none(), "another key signed it");
        let tampered = token.replace(&token[token.len() - 4..], "AAAA");
        assert!(issuer.verify(&tampered, 1500, &[]).is_none());
        for garbage in ["", ".", "..", "a.b.c", "é.é.é"] {
            assert!(issuer.verify(garbage, 1500, &[]).is_none());
        }
    }
}
