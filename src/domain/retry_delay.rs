//! The expression language of `Upstash-Retry-Delay`.
//!
//! Decimal numbers, `+ - * / %`, unary minus, parentheses, the variable `retried` and some functions, over IEEE
//! doubles; the value is a number of milliseconds. A Pratt parser turns the text into a program for a stack machine,
//! so that neither evaluating nor dropping an expression recurses.

use std::time::Duration;

use super::excerpt::Excerpt;
use super::retry::MAX_DELAY;

/// Bytes that an expression may have. It is evaluated after every failed attempt, so it stays small.
const MAX_LENGTH: usize = 1024;

/// Levels of parentheses, calls and signs. With the three levels of precedence it bounds the parser's recursion.
const MAX_NESTING: u32 = 64;

/// What binds tighter than `* / %`.
const UNARY: u8 = 3;

/// Why an expression was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{problem} at character {position}")]
pub struct ExpressionError {
    /// Where, counted in characters from 1.
    pub position: usize,
    /// What was wrong there and what is accepted.
    pub problem: String,
}

/// An expression that has been checked.
#[derive(Clone, PartialEq, Debug)]
pub struct Expression {
    /// In postfix order; leaves exactly one value on the stack.
    program: Vec<Op>,
}

impl Expression {
    /// Reads an expression of at most 1 kB and 64 levels.
    pub fn parse(text: &str) -> Result<Self, ExpressionError> {
        let mut parser = Parser { text, at: 0, nesting: 0, program: Vec::new() };
        if text.len() > MAX_LENGTH {
            return Err(parser.error_at(MAX_LENGTH, format!("an expression longer than {MAX_LENGTH} bytes")));
        }
        parser.operand_and_operators(0)?;
        match parser.peek() {
            None => Ok(Self { program: parser.program }),
            Some(_) => Err(parser.unexpected("an operator (+ - * / %) or the end")),
        }
    }

    /// The delay before the next attempt, 0 to 1 day; `None` when the value is not a number: use back-off.
    ///
    /// `retried` is the number of retries already made: 0 before the first one.
    pub fn delay(&self, retried: u32) -> Option<Duration> {
        let ms = self.value(f64::from(retried));
        if ms.is_nan() {
            None
        } else if ms >= MAX_DELAY.as_secs_f64() * 1000.0 {
            Some(MAX_DELAY)
        } else {
            Some(Duration::from_secs_f64(ms.max(0.0) / 1000.0))
        }
    }

    fn value(&self, retried: f64) -> f64 {
        let mut stack: Vec<f64> = Vec::new();
        for op in &self.program {
            let value = match *op {
                Op::Number(value) => value,
                Op::Retried => retried,
                Op::Negate => -stack.pop().expect("the parser leaves an operand"),
                Op::Operator(operator) => {
                    let right = stack.pop().expect("the parser leaves two operands");
                    let left = stack.pop().expect("the parser leaves two operands");
                    operator.apply(left, right)
                }
                Op::Call(function, arguments) => {
                    let first = stack.len() - arguments;
                    let value = function.apply(&stack[first..]);
                    stack.truncate(first);
                    value
                }
            };
            stack.push(value);
        }
        stack.pop().expect("the parser leaves one value")
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Op {
    Number(f64),
    Retried,
    Negate,
    Operator(Operator),
    /// With its number of arguments.
    Call(Function, usize),
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

impl Operator {
    fn read(c: char) -> Option<Self> {
        Some(match c {
            '+' => Self::Add,
            '-' => Self::Subtract,
            '*' => Self::Multiply,
            '/' => Self::Divide,
            '%' => Self::Remainder,
            _ => return None,
        })
    }

    const fn precedence(self) -> u8 {
        match self {
            Self::Add | Self::Subtract => 1,
            Self::Multiply | Self::Divide | Self::Remainder => 2,
        }
    }

    fn apply(self, left: f64, right: f64) -> f64 {
        match self {
            Self::Add => left + right,
            Self::Subtract => left - right,
            Self::Multiply => left * right,
            Self::Divide => left / right,
            Self::Remainder => left % right,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Function {
    Pow,
    Sqrt,
    Abs,
    Exp,
    Floor,
    Ceil,
    Round,
    Min,
    Max,
}

impl Function {
    fn read(name: &str) -> Option<Self> {
        Some(match name {
            "pow" => Self::Pow,
            "sqrt" => Self::Sqrt,
            "abs" => Self::Abs,
            "exp" => Self::Exp,
            "floor" => Self::Floor,
            "ceil" => Self::Ceil,
            "round" => Self::Round,
            "min" => Self::Min,
            "max" => Self::Max,
            _ => return None,
        })
    }

    /// The least and the greatest number of arguments.
    const fn arity(self) -> (usize, usize) {
        match self {
            Self::Pow => (2, 2),
            Self::Min | Self::Max => (2, MAX_LENGTH),
            _ => (1, 1),
        }
    }

    fn apply(self, arguments: &[f64]) -> f64 {
        let first = arguments[0];
        match self {
            Self::Pow => first.powf(arguments[1]),
            Self::Sqrt => first.sqrt(),
            Self::Abs => first.abs(),
            Self::Exp => first.exp(),
            Self::Floor => first.floor(),
            Self::Ceil => first.ceil(),
            Self::Round => first.round(),
            // Not f64::min and max, which hide a NaN; a NaN means back-off.
            Self::Min => fold(arguments, |a, b| b < a),
            Self::Max => fold(arguments, |a, b| b > a),
        }
    }
}

fn fold(values: &[f64], better: fn(f64, f64) -> bool) -> f64 {
    values.iter().copied().reduce(|a, b| if b.is_nan() || better(a, b) { b } else { a }).unwrap_or(f64::NAN)
}

struct Parser<'a> {
    text: &'a str,
    /// Bytes that have been read.
    at: usize,
    nesting: u32,
    program: Vec<Op>,
}

const OPERAND: &str = "a number, retried, a function, - or (";

impl<'a> Parser<'a> {
    /// Reads an operand and all operators behind it that bind tighter than `above`.
    fn operand_and_operators(&mut self, above: u8) -> Result<(), ExpressionError> {
        self.operand()?;
        while let Some(operator) = self.peek().and_then(Operator::read) {
            if operator.precedence() <= above {
                break;
            }
            self.at += 1;
            self.operand_and_operators(operator.precedence())?;
            self.program.push(Op::Operator(operator));
        }
        Ok(())
    }

    /// The same, one level deeper.
    fn nested(&mut self, above: u8) -> Result<(), ExpressionError> {
        if self.nesting == MAX_NESTING {
            return Err(self.error_at(self.at, format!("more than {MAX_NESTING} levels of nesting")));
        }
        self.nesting += 1;
        self.operand_and_operators(above)?;
        self.nesting -= 1;
        Ok(())
    }

    fn operand(&mut self) -> Result<(), ExpressionError> {
        match self.peek() {
            Some('-') => {
                self.at += 1;
                self.nested(UNARY)?;
                self.program.push(Op::Negate);
                Ok(())
            }
            Some('(') => {
                self.at += 1;
                self.nested(0)?;
                self.expect(')', "an operator (+ - * / %) or )")
            }
            Some(c) if c.is_ascii_digit() || c == '.' => self.number(),
            Some(c) if c.is_ascii_alphabetic() => self.name(),
            _ => Err(self.unexpected(OPERAND)),
        }
    }

    fn number(&mut self) -> Result<(), ExpressionError> {
        let start = self.at;
        let text = self.take_while(|c| c.is_ascii_digit() || c == '.');
        let value = text.parse().map_err(|_| {
            self.error_at(start, format!("invalid number {:?}, expected one such as 1.5", Excerpt(text)))
        })?;
        self.program.push(Op::Number(value));
        Ok(())
    }

    fn name(&mut self) -> Result<(), ExpressionError> {
        let start = self.at;
        let name = self.take_while(|c| c.is_ascii_alphanumeric() || c == '_');
        if name == "retried" {
            self.program.push(Op::Retried);
            return Ok(());
        }
        let Some(function) = Function::read(name) else {
            let known = "retried, pow, sqrt, abs, exp, floor, ceil, round, min, max";
            return Err(
                self.error_at(start, format!("unknown name {:?}, expected one of {known}", Excerpt(name)))
            );
        };
        self.expect('(', "(")?;
        let mut arguments = 0;
        loop {
            self.nested(0)?;
            arguments += 1;
            match self.peek() {
                Some(',') => self.at += 1,
                _ => break,
            }
        }
        self.expect(')', "an operator (+ - * / %), a comma or )")?;
        let (least, most) = function.arity();
        if arguments < least || arguments > most {
            let wanted = if least == most { format!("{least}") } else { format!("at least {least}") };
            let problem = format!("{name} takes {wanted} arguments, not {arguments},");
            return Err(self.error_at(start, problem));
        }
        self.program.push(Op::Call(function, arguments));
        Ok(())
    }

    /// The next character that is not a space; `at` is moved to it.
    fn peek(&mut self) -> Option<char> {
        self.at = self.text.len() - self.text[self.at..].trim_ascii_start().len();
        self.text[self.at..].chars().next()
    }

    fn take_while(&mut self, wanted: fn(char) -> bool) -> &'a str {
        let rest = &self.text[self.at..];
        let taken = &rest[..rest.find(|c| !wanted(c)).unwrap_or(rest.len())];
        self.at += taken.len();
        taken
    }

    fn expect(&mut self, wanted: char, expected: &str) -> Result<(), ExpressionError> {
        if self.peek() == Some(wanted) {
            self.at += 1;
            return Ok(());
        }
        Err(self.unexpected(expected))
    }

    fn unexpected(&self, expected: &str) -> ExpressionError {
        let found = match self.text[self.at..].chars().next() {
            Some(c) => format!("unexpected {c:?}"),
            None => "unexpected end".to_owned(),
        };
        self.error_at(self.at, format!("{found}, expected {expected},"))
    }

    fn error_at(&self, at: usize, problem: String) -> ExpressionError {
        let position = self.text.char_indices().take_while(|(index, _)| *index < at).count() + 1;
        ExpressionError { position, problem }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, retried: u32, expected_ms: impl Into<Option<u64>>) {
        let expression = Expression::parse(text).unwrap();
        assert_eq!(expression.delay(retried), expected_ms.into().map(Duration::from_millis), "{text}");
    }

    #[track_caller]
    fn check_error(text: &str, position: usize, problem: &str) {
        let error = Expression::parse(text).unwrap_err();
        assert!(error.problem.starts_with(problem), "{text}: {error}");
        assert_eq!(error.position, position, "{text}: {error}");
    }

    #[test]
    fn values() {
        check("1000", 0, 1000);
        check("1000 * (1 + retried)", 2, 3000);
        check("pow(2, retried) * 1000", 3, 8000);
        check("max(1000, pow(2, retried) * 100)", 0, 1000);
        check("max(1000, pow(2, retried) * 100)", 5, 3200);
        check("1 + 2 * 3 - 4 / 2 % 3", 0, 5);
        check("10 - 3 - 2", 0, 5);
        check("100 / 10 / 5", 0, 2);
        check("-2 * -3", 0, 6);
        check("2 * - 3 + 10", 0, 4);
        check("--5", 0, 5);
        check("7 % 4 * 2", 0, 6);
        check("min(5, 3, 4) + max(1,2,3,4)", 0, 7);
        check("sqrt(16)+abs(-3)+floor(1.9)+ceil(1.1)+round(2.5)", 0, 13);
        check("floor(exp(2.5) * 1000)", 0, 12_182);
        check(".5 * 4 + 1.", 0, 3);
        check("\tretried ", 9, 9);
        check("1-1", 0, 0);
    }

    #[test]
    fn limits() {
        check("-1000", 0, 0);
        check("1 / 0", 0, 86_400_000);
        check("-1 / 0", 0, 0);
        check("0 / 0", 0, None);
        check("sqrt(-1)", 0, None);
        check("min(1, 0/0)", 0, None);
        check("max(0/0, 1)", 0, None);
        check("pow(10, 400)", 0, 86_400_000);
        check("86400001", 0, 86_400_000);
        check("1 % 0", 0, None);
    }

    #[test]
    fn refused() {
        check_error("", 1, "unexpected end, expected a number");
        check_error("1 +", 4, "unexpected end, expected a number");
        check_error("1 2", 3, "unexpected '2', expected an operator");
        check_error("(1", 3, "unexpected end, expected an operator (+ - * / %) or )");
        check_error("1)", 2, "unexpected ')', expected an operator (+ - * / %) or the end");
        check_error("* 2", 1, "unexpected '*'");
        check_error("2 ^ 3", 3, "unexpected '^'");
        check_error("é + 1", 1, "unexpected 'é'");
        check_error("1 + é", 5, "unexpected 'é'");
        check_error("1.2.3", 1, "invalid number \"1.2.3\"");
        check_error("1 + .", 5, "invalid number \".\"");
        check_error("Retried", 1, "unknown name \"Retried\", expected one of retried, pow");
        check_error("1 + log(2)", 5, "unknown name \"log\"");
        check_error("pow", 4, "unexpected end, expected (");
        check_error("pow(1)", 1, "pow takes 2 arguments, not 1");
        check_error("1 + sqrt(1, 2)", 5, "sqrt takes 1 arguments, not 2");
        check_error("min(1)", 1, "min takes at least 2 arguments, not 1");
        check_error("max()", 5, "unexpected ')', expected a number");
        check_error(&"1".repeat(1025), 1025, "an expression longer than 1024 bytes");
        check_error(&format!("{}1", "-".repeat(65)), 66, "more than 64 levels of nesting");
    }

    #[test]
    fn nesting_up_to_the_limit() {
        check(&format!("{}1{}", "(".repeat(64), ")".repeat(64)), 0, 1);
        check(&format!("{}1{}", "1+1*(".repeat(64), ")".repeat(64)), 0, 65);
        check(&format!("{}1{}", "max(1,".repeat(64), ")".repeat(64)), 0, 1);
        check(&format!("1{}", "+1".repeat(511)), 0, 512);
    }

    proptest! {
        #[test]
        fn never_panics_and_stays_in_range(
            text in "(retried|pow\\(|max\\(|sqrt\\(|[0-9.]{1,3}|[-+*/%(), ]){0,30}|\\PC{0,20}",
            retried: u32,
        ) {
            if let Ok(expression) = Expression::parse(&text) {
                prop_assert!(expression.delay(retried).is_none_or(|delay| delay <= MAX_DELAY));
            }
        }

        #[test]
        fn arithmetic_is_that_of_doubles(a in 0_u32..1000, b in 0_u32..1000, c in 1_u32..1000) {
            let (x, y, z) = (f64::from(a), f64::from(b), f64::from(c));
            let expression = Expression::parse(&format!("{a}+{b}*{c}-({a}-{b})/{c}%{c}")).unwrap();
            prop_assert_eq!(expression.value(0.0).to_bits(), (x + y * z - (x - y) / z % z).to_bits());
        }
    }
}
