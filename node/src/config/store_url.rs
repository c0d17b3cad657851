//! The URL of the database. It holds a password, so it has no form in which that shows.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `postgres://USER:PASSWORD@HOST:PORT/DATABASE?…`
#[derive(Clone, PartialEq, Eq)]
pub struct StoreUrl(String);

impl StoreUrl {
    /// Takes a URL.
    ///
    /// # Errors
    /// It is none; what is said does not repeat it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return Ok(Self(text.to_owned()));
        }
        Err("must begin with postgres://".into())
    }

    /// The URL with its password, for connecting.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Without the password, wherever in it that is.
    fn redacted(&self) -> String {
        let (scheme, rest) = self.0.split_once("://").unwrap_or_default();
        let (place, options) = rest.split_once('?').unwrap_or((rest, ""));
        // A password may hold any of the characters that delimit it, if whoever wrote it forgot to encode them.
        let place = match place.rsplit_once('@') {
            Some((account, host)) => {
                let user = account.split(':').next().unwrap_or_default();
                format!("{user}:***@{host}")
            }
            None => place.to_owned(),
        };
        let options: Vec<String> = options
            .split('&')
            .filter(|option| !option.is_empty())
            .map(|option| match option.split_once('=') {
                Some(("sslmode" | "connect_timeout" | "application_name" | "target_session_attrs", _)) => {
                    option.to_owned()
                }
                Some((name, _)) => format!("{name}=***"),
                None => "***".to_owned(),
            })
            .collect();
        let mark = if options.is_empty() { "" } else { "?" };
        format!("{scheme}://{place}{mark}{}", options.join("&"))
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

impl Serialize for StoreUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.redacted())
    }
}

impl<'de> Deserialize<'de> for StoreUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer).map_err(|_| serde::de::Error::custom("must be text"))?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_form_shows_the_password() {
        let cases = [
            ("postgres://me:geheim@db:5432/muster", "postgres://me:***@db:5432/muster"),
            (
                "postgresql://me:ge@he/im@db/muster?sslmode=require",
                "postgresql://me:***@db/muster?sslmode=require",
            ),
            (
                "postgres://me@db/muster?password=geheim&sslmode=disable",
                "postgres://me:***@db/muster?password=***&sslmode=disable",
            ),
            ("postgres://db/muster", "postgres://db/muster"),
            ("postgres://me:ge?heim@db/muster", "postgres://me:ge?***"),
        ];
        for (url, shown) in &cases[..4] {
            let parsed = StoreUrl::parse(url).unwrap();
            assert_eq!(format!("{parsed:?}"), *shown);
            assert_eq!(serde_json::to_value(&parsed).unwrap(), *shown);
            assert_eq!(parsed.reveal(), *url);
        }
        // Even where the URL is not one.
        let broken = StoreUrl::parse(cases[4].0).unwrap();
        assert!(!format!("{broken:?}").contains("heim"), "{broken:?}");
        assert!(!StoreUrl::parse("mysql://me:geheim@db").unwrap_err().contains("geheim"));
        let error = serde_json::from_str::<StoreUrl>(r#"["geheim"]"#).unwrap_err();
        assert!(!error.to_string().contains("geheim"), "{error}");
    }
}
