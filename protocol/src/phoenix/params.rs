//! Connection parameters, as the npm client encodes them: nested with percent-encoded brackets, empty segments for
//! `null` and `{}`, everything a string (phoenix.md §1.2).

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;

/// Parameters of a connection. A later value of one name replaces an earlier one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Params(BTreeMap<String, Param>);

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Param {
    /// A string, as everything arrives.
    Text(String),
    /// `name[key]=…`; arrays come with their indexes as keys.
    Map(Params),
}

/// The query is not UTF-8 once decoded; Phoenix answers 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("query is not UTF-8")]
pub struct NotUtf8;

/// Parameters and nesting one query may hold; what is beyond is dropped, as no client of ours sends it.
const PARAMS_MAX: usize = 256;
const NESTING_MAX: usize = 8;

impl Params {
    /// Decodes a query string. Malformed percent signs stay as they are.
    ///
    /// # Errors
    /// [`NotUtf8`]
    pub fn parse(query: &str) -> Result<Self, NotUtf8> {
        let mut params = Self::default();
        for segment in query.split('&').filter(|segment| !segment.is_empty()).take(PARAMS_MAX) {
            let (name, value) = segment.split_once('=').unwrap_or((segment, ""));
            let (name, value) = (decode(name)?, decode(value)?);
            let (first, keys) = split_name(&name);
            params.insert(first, &keys, value);
        }
        Ok(params)
    }

    /// A text parameter.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.0.get(name)? {
            Param::Text(text) => Some(text),
            Param::Map(_) => None,
        }
    }

    /// Any parameter.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Param> {
        self.0.get(name)
    }

    /// The key of what `a[]=x` appends: it replaces nothing, gaps or not.
    fn free_index(&self) -> String {
        let mut index = self.0.len();
        while self.0.contains_key(&index.to_string()) {
            index += 1;
        }
        index.to_string()
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Param)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    fn insert(&mut self, name: &str, keys: &[&str], value: String) {
        let Some((key, deeper)) = keys.split_first() else {
            self.0.insert(name.to_owned(), Param::Text(value));
            return;
        };
        let slot = self.0.entry(name.to_owned()).or_insert_with(|| Param::Map(Self::default()));
        if matches!(slot, Param::Text(_)) {
            *slot = Param::Map(Self::default());
        }
        if let Param::Map(inner) = slot {
            if key.is_empty() {
                inner.insert(&inner.free_index(), deeper, value);
            } else {
                inner.insert(key, deeper, value);
            }
        }
    }
}

fn decode(text: &str) -> Result<String, NotUtf8> {
    // A plus is a space in a query, as for every form decoder.
    let spaced = text.replace('+', " ");
    Ok(percent_decode_str(&spaced).decode_utf8().map_err(|_| NotUtf8)?.into_owned())
}

/// `a[b][c]` to `a` and `[b, c]`. Brackets that do not close are part of the name.
fn split_name(name: &str) -> (&str, Vec<&str>) {
    let Some(open) = name.find('[').filter(|open| *open > 0) else {
        return (name, Vec::new());
    };
    let (first, mut rest) = name.split_at(open);
    let mut keys = Vec::new();
    while let Some((key, after)) = rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        if keys.len() == NESTING_MAX {
            return (name, Vec::new());
        }
        keys.push(key);
        rest = after;
    }
    if rest.is_empty() { (first, keys) } else { (name, Vec::new()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_the_npm_client_sends() {
        let params = Params::parse(
            "tok=a%20b%26c%3Dd%2F%C3%A9&n=1&b=true&&u=undefined&nest%5Bx%5D%5By%5D=1&arr%5B0%5D=p&arr%5B1%5D=q&&vsn=2.0.0&",
        )
        .unwrap();
        assert_eq!(params.text("tok"), Some("a b&c=d/é"));
        assert_eq!(params.text("b"), Some("true"));
        assert_eq!(params.text("vsn"), Some("2.0.0"));
        let Some(Param::Map(nest)) = params.get("nest") else { panic!("nest") };
        let Some(Param::Map(x)) = nest.get("x") else { panic!("x") };
        assert_eq!(x.text("y"), Some("1"));
        let Some(Param::Map(list)) = params.get("arr") else { panic!("arr") };
        assert_eq!((list.text("0"), list.text("1")), (Some("p"), Some("q")));
        assert_eq!(params.text("nest"), None);
    }

    #[test]
    fn the_last_value_wins_and_malformed_input_is_tolerated() {
        let params =
            Params::parse("vsn=1.0.0&vsn=2.0.0&bad=%zz&open[=1&[x]=2&a[]=1&a[]=2&flag&s=a+b").unwrap();
        assert_eq!(params.text("vsn"), Some("2.0.0"));
        assert_eq!(params.text("bad"), Some("%zz"));
        assert_eq!(params.text("open["), Some("1"));
        assert_eq!(params.text("[x]"), Some("2"));
        assert_eq!(params.text("flag"), Some(""));
        assert_eq!(params.text("s"), Some("a b"));
        let Some(Param::Map(list)) = params.get("a") else { panic!("a") };
        assert_eq!(list.text("1"), Some("2"));
        let params = Params::parse("a[1]=x&a[]=y").unwrap();
        let Some(Param::Map(list)) = params.get("a") else { panic!("a") };
        assert_eq!((list.text("1"), list.text("2")), (Some("x"), Some("y")));
        assert_eq!(Params::parse("x=%ff"), Err(NotUtf8));
    }

    #[test]
    fn nesting_and_number_are_bounded() {
        let deep = format!("a{}=1", "[b]".repeat(1_000));
        assert!(matches!(Params::parse(&deep).unwrap().0.values().next(), Some(Param::Text(_))));
        let many: String = (0..5_000).map(|n| format!("p{n}=1&")).collect();
        assert_eq!(Params::parse(&many).unwrap().0.len(), PARAMS_MAX);
    }
}
