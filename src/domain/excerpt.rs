//! Input in error texts.

use std::fmt;

/// Characters of an input that an error repeats.
const MAX: usize = 200;

/// A text as errors repeat it: at most its first 200 characters, then an ellipsis. `Debug` puts it into quotes and
/// escapes what can't be seen.
#[derive(Clone, Copy)]
pub struct Excerpt<'a>(pub &'a str);

impl<'a> Excerpt<'a> {
    /// What is shown of it, and whether that is less than all.
    fn shown(self) -> (&'a str, bool) {
        match self.0.char_indices().nth(MAX) {
            Some((end, _)) => (&self.0[..end], true),
            None => (self.0, false),
        }
    }
}

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shown, is_cut) = self.shown();
        f.write_str(shown)?;
        f.write_str(if is_cut { "\u{2026}" } else { "" })
    }
}

impl fmt::Debug for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shown, is_cut) = self.shown();
        write!(f, "{shown:?}")?;
        f.write_str(if is_cut { "\u{2026}" } else { "" })
    }
}

/// The text of an error that quotes input by itself: its beginning and its end, where parsers say what they expected.
pub fn shorten(text: &str) -> String {
    let Some((start, _)) = text.char_indices().nth(MAX) else { return text.to_owned() };
    let (end, _) = text.char_indices().rev().nth(MAX / 2 - 1).unwrap_or_default();
    if end <= start { text.to_owned() } else { format!("{}\u{2026}{}", &text[..start], &text[end..]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_has_200_characters() {
        for letter in ["a", "\u{fc}", "\u{1f980}"] {
            let (fits, long) = (letter.repeat(200), letter.repeat(201));
            assert_eq!(
                (Excerpt(&fits).to_string(), format!("{:?}", Excerpt(&fits))),
                (fits.clone(), format!("{fits:?}"))
            );
            assert_eq!(Excerpt(&long).to_string(), format!("{fits}\u{2026}"));
            assert_eq!(format!("{:?}", Excerpt(&long)), format!("{fits:?}\u{2026}"));
        }
        assert_eq!(format!("{:?}", Excerpt("a\n\"")), r#""a\n\"""#);
    }

    #[test]
    fn a_shortened_text_keeps_both_ends() {
        let ends = |letters: usize| format!("begin {} end", "\u{fc}".repeat(letters));
        assert_eq!(shorten(&ends(289)), ends(289));
        for letters in [292, 1000, 100_000] {
            let text = shorten(&ends(letters));
            assert!(text.starts_with("begin \u{fc}") && text.ends_with("\u{fc} end"), "{text}");
            assert_eq!(text.chars().count(), 301);
        }
    }
}
