//! Who is present under which name: for private messages, and so that a name can be one person's alone.
//!
//! A client has one name at a time here, the one that it was last heard under. Several may share a name; with unique
//! names they may not, however it is spelled (case-folded), except the names of those who gave none.
//!
//! The subtle thing: a private message goes to a name as it is spelled, while a name is *owned* however it is spelled; so
//! there are two tables, and the folded one exists only where names must be unique.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;

use mio::Token;
use unicase::UniCase;

use super::dialect::Dialect;

/// All names that are present.
#[derive(Debug)]
pub struct Names {
    present: HashMap<Rc<str>, Vec<Token>>,
    /// Who has a name, by its folded form; `None`: names need not be unique.
    owners: Option<HashMap<String, Token>>,
}

impl Names {
    /// No names. `unique`: two clients must not have the same.
    pub fn new(unique: bool) -> Names {
        Names { present: HashMap::new(), owners: unique.then(HashMap::new) }
    }

    /// A client is present under this name.
    pub fn add(&mut self, name: &Rc<str>, token: Token) {
        self.present.entry(Rc::clone(name)).or_default().push(token);
        if let Some(owners) = self.owners.as_mut().filter(|_| counts(name)) {
            let before = owners.insert(fold(name), token);
            debug_assert_eq!(before, None, "judged before");
        }
    }

    /// A client is not present under this name any more.
    pub fn remove(&mut self, name: &Rc<str>, token: Token) {
        if let Entry::Occupied(mut bearers) = self.present.entry(Rc::clone(name)) {
            bearers.get_mut().retain(|other| *other != token);
            if bearers.get().is_empty() {
                bearers.remove();
            }
        }
        if let Some(owners) = self.owners.as_mut().filter(|_| counts(name)) {
            owners.remove(&fold(name));
        }
    }

    /// Those who are present under exactly this name.
    pub fn bearers(&self, name: &str) -> &[Token] {
        self.present.get(name).map_or(&[], Vec::as_slice)
    }

    /// Who stands in the way of taking this name, if names are unique.
    pub fn owner(&self, name: &str) -> Option<Token> {
        self.owners.as_ref().filter(|_| counts(name))?.get(&fold(name)).copied()
    }

    /// Splits `NAME TEXT`: the name is the longest that is present, else the first word.
    pub fn split_addressee<'a>(&self, words: &'a str) -> (&'a str, &'a str) {
        let ends = words.match_indices(char::is_whitespace).map(|(at, _)| at).chain([words.len()]);
        // A name ends with its last character, so of several blanks only the first can follow one.
        let present = ends.take_while(|end| *end <= 128).filter(|end| self.present.contains_key(&words[..*end]));
        let first_word = words.find(char::is_whitespace).unwrap_or(words.len());
        let (name, text) = words.split_at(present.last().unwrap_or(first_word));
        (name, text.trim_start())
    }
}

/// Whether a name can be somebody's own.
fn counts(name: &str) -> bool {
    !Dialect::ALL.iter().any(|dialect| dialect.default_username() == Some(name))
}

/// Unicode case folding: `ALICE`, `Alice` and `alice` are one name.
fn fold(name: &str) -> String {
    UniCase::new(name).to_folded_case()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(unique: bool, present: &[&str]) -> Names {
        let mut names = Names::new(unique);
        for (number, name) in present.iter().enumerate() {
            names.add(&Rc::from(*name), Token(number));
        }
        names
    }

    #[test]
    fn names_are_folded_where_they_are_unique() {
        let mut names = names(true, &["Straße", "anonymous", "anonymous", "Anonymous"]);
        assert_eq!(names.owner("STRASSE"), Some(Token(0)));
        assert_eq!((names.owner("anonymous"), names.owner("Anonymous")), (None, None));
        assert_eq!(names.bearers("anonymous"), [Token(1), Token(2)]);
        names.remove(&"Straße".into(), Token(0));
        assert_eq!((names.owner("strasse"), names.bearers("Straße")), (None, &[][..]));
        assert_eq!(self::names(false, &["alice"]).owner("alice"), None);
    }

    #[test]
    fn an_addressee_is_the_longest_name_that_is_present() {
        let names = names(false, &["ann", "ann lee", "ann lee  x"]);
        let cases = [
            ("ann hi", ("ann", "hi")),
            ("ann lee hi there", ("ann lee", "hi there")),
            ("ann lee  x hi", ("ann lee  x", "hi")),
            ("ann leek", ("ann", "leek")),
            ("bob lee hi", ("bob", "lee hi")),
            ("ann", ("ann", "")),
            ("bob", ("bob", "")),
        ];
        for (words, split) in cases {
            assert_eq!(names.split_addressee(words), split, "{words}");
        }
    }
}
