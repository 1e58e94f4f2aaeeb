//! What callers have sent, as far as it may be repeated to them and in logs: shortened, and without control characters.
//!
//! A status travels in HTTP/2 trailers, of which clients take 8 kB in all by default (gRPC's
//! `max_metadata_size`), and a log or a terminal is no place for somebody else's escape sequences.

use std::borrow::Cow;
use std::fmt::Write;

/// What a text costs at most where it is one of two in an error: the field that is at fault, or what was asked for. In
/// thirds of a byte: each byte stands in the status's message as it is, or as three where gRPC writes it by
/// percent-encoding, and in up to three binary details, which take four bytes for three.
pub(super) const SUBJECT: usize = 200 * PLAIN;
/// The other one of the two.
pub(super) const BESIDE: usize = 480 * PLAIN;
/// A text that is all that an error says.
pub(super) const ALONE: usize = SUBJECT + BESIDE;
/// A name among others.
const NAME: usize = 90 * PLAIN;
/// A list of names, with the words around it below [`BESIDE`].
const NAMES: usize = 380 * PLAIN;
/// A byte that is written as it is, and one that is written as three.
const PLAIN: usize = 3 + 3 * 4;
const ENCODED: usize = 3 * 3 + 3 * 4;

/// A text as it may stand in an error: control characters are escaped, and of one that costs more than `most` only
/// beginning and end are kept, with the count of what is left out. What has been shown once is not changed again.
pub(super) fn shown(text: &str, most: usize) -> Cow<'_, str> {
    // most errors are short and plain
    if text.len() <= most / ENCODED && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Cow::Borrowed(text);
    }
    let mut cost = 0;
    // of a text of megabytes no more is read than what may be shown
    for character in text.chars() {
        cost += cost_of(character);
        if cost > most {
            return Cow::Owned(cut(text, most));
        }
    }
    Cow::Owned(text.chars().fold(String::with_capacity(text.len()), put))
}

/// Names by commas: as many as there is room for, and how many more there are.
pub fn names<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let mut list = String::new();
    let (mut spent, mut left_out) = (0, 0);
    for name in names {
        let name = shown(name.as_ref(), NAME).into_owned();
        let cost = PLAIN + ENCODED + name.chars().map(cost_of).sum::<usize>();
        if left_out > 0 || spent + cost > NAMES {
            left_out += 1;
            continue;
        }
        spent += cost;
        if !list.is_empty() {
            list.push_str(", ");
        }
        list.push_str(&name);
    }
    if left_out > 0 {
        // writing into a string does not fail
        let _ = write!(list, " and {left_out} more");
    }
    list
}

/// Beginning and end, the end being where most errors say what was expected.
fn cut(text: &str, most: usize) -> String {
    // room for the words in between, of which six are blanks or brackets
    let room = most.saturating_sub(40 * PLAIN + 6 * ENCODED);
    let (head, tail) = (room * 2 / 3, room / 3);
    let mut spent = 0;
    let fits = |limit: usize, spent: &mut usize, character: char| {
        *spent += cost_of(character);
        *spent <= limit
    };
    let beginning: Vec<char> = text.chars().take_while(|&character| fits(head, &mut spent, character)).collect();
    spent = 0;
    let mut end: Vec<char> = text.chars().rev().take_while(|&character| fits(tail, &mut spent, character)).collect();
    end.reverse();
    let bytes = |characters: &[char]| characters.iter().map(|character| character.len_utf8()).sum::<usize>();
    let left_out = text.len() - bytes(&beginning) - bytes(&end);
    let mut kept = beginning.into_iter().fold(String::with_capacity(most), put);
    let _ = write!(kept, "... ({left_out} bytes left out) ...");
    end.into_iter().fold(kept, put)
}

fn put(mut text: String, character: char) -> String {
    if is_hidden(character) {
        text.extend(character.escape_default());
    } else {
        text.push(character);
    }
    text
}

/// What it takes, see [`SUBJECT`]. tonic encodes more than gRPC asks for: blanks, quotes and brackets too.
fn cost_of(character: char) -> usize {
    match character {
        ' ' | '"' | '#' | '%' | '<' | '>' | '`' | '?' | '{' | '}' => ENCODED,
        '!'..='~' => PLAIN,
        _ if is_hidden(character) => character.escape_default().map(cost_of).sum(),
        _ => ENCODED * character.len_utf8(),
    }
}

/// Control characters, and those that change what others look like: line and paragraph separators, marks of the direction
/// of writing, and characters without width (Unicode's `Cc`, and what of `Cf`, `Zl` and `Zp` terminals act on).
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cost(text: &str) -> usize {
        text.chars().map(cost_of).sum()
    }

    #[test]
    fn short_and_plain_texts_are_left_as_they_are() {
        for text in ["", "expected 1 to 10", "größer als ein Bär 🐻", &"x".repeat(200)] {
            assert_eq!(shown(text, SUBJECT), text);
        }
    }

    #[test]
    fn a_long_text_keeps_its_beginning_and_what_was_expected() {
        let text = format!("'{}', expected a number", "a".repeat(20_000));
        let short = shown(&text, BESIDE);
        assert!(short.starts_with("'aaa") && short.ends_with("aaa', expected a number"), "{short}");
        assert!(short.contains("bytes left out"), "{short}");
    }

    #[test]
    fn nothing_that_moves_a_cursor_or_hides_text_is_repeated() {
        let evil = "a\u{1b}[2Jb\r\nc\u{202e}d\0\u{85}e\u{feff}";
        assert_eq!(shown(evil, SUBJECT), r"a\u{1b}[2Jb\r\nc\u{202e}d\u{0}\u{85}e\u{feff}");
    }

    #[test]
    fn lists_of_names_are_cut_with_a_count() {
        assert_eq!(names(["a", "b"]), "a, b");
        assert_eq!(names(Vec::<String>::new()), "");
        let many = names((0..1000).map(|n| format!("model-{n}")));
        assert!(many.starts_with("model-0, model-1, ") && many.ends_with(" more"), "{many}");
        let shown = many.split(", ").count();
        assert!(many.contains(&format!("and {} more", 1000 - shown)), "{many}");
        assert!(cost(&many) < BESIDE);
        let one = names(["x".repeat(5000)]);
        assert!(one.starts_with("xxx") && one.len() < 100, "{one}");
    }

    proptest! {
        #[test]
        fn whatever_it_is_it_costs_no_more_and_is_shown_the_same_again(text in any::<String>(), times in 1usize..200) {
            let text = text.repeat(times);
            let once = shown(&text, SUBJECT).into_owned();
            prop_assert!(cost(&once) <= SUBJECT, "{once}");
            prop_assert!(!once.chars().any(is_hidden));
            prop_assert_eq!(shown(&once, SUBJECT), once.as_str());
        }
    }
}
