//! The error a task's code returns, and whether trying again can help.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;

/// A result whose error says whether trying again can help.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a step failed. Anything that is a [`std::error::Error`] becomes one with `?`, as retryable;
/// [`Classify`] decides otherwise.
///
/// A retryable error discards the step and has it run again after a delay, as the task's
/// [`Retry`](crate::Retry) says. A fatal one ends the task as failed. A handover is no error and
/// costs no attempt.
///
/// ```
/// use handover::{Classify, Error, Result};
///
/// fn parse(text: &str) -> Result<u64> {
///     if text.is_empty() {
///         return Err(Error::retry("nothing has arrived yet"));
///     }
///     text.parse().fatal() // no later attempt will parse it
/// }
/// assert!(!parse("").unwrap_err().is_fatal());
/// assert!(parse("seven").unwrap_err().is_fatal());
/// ```
///
/// It does not implement [`std::error::Error`] itself: that would forbid the conversion from all
/// others. `Display` and `Debug` both write the whole chain of causes.
pub struct Error {
    class: Class,
    source: Box<dyn StdError + Send + Sync>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Retry,
    Fatal,
    Stuck,
    Moved,
}

impl Error {
    /// An error that another attempt may not meet.
    pub fn retry(message: impl Into<String>) -> Self {
        Self::new(Class::Retry, message.into())
    }

    /// An error that every attempt would meet: ends the task as failed.
    pub fn fatal(message: impl Into<String>) -> Self {
        Self::new(Class::Fatal, message.into())
    }

    /// An error that every attempt of this build would meet, and that is no result of the task: it is
    /// parked with its last kept state.
    pub(crate) fn stuck(error: impl StdError + Send + Sync + 'static) -> Self {
        Self { class: Class::Stuck, source: Box::new(error) }
    }

    /// The task runs elsewhere from here on.
    pub(crate) fn moved() -> Self {
        Self::new(
            Class::Moved,
            "the task is handed over: return, it goes on elsewhere from its last checkpoint".into(),
        )
    }

    /// What a panic was about, as a retryable error.
    pub(crate) fn panicked(what: &str, panic: &(dyn Any + Send)) -> Self {
        let text = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        Self::retry(format!("{what} panicked: {text}"))
    }

    fn new(class: Class, message: String) -> Self {
        Self { class, source: message.into() }
    }

    /// Whether no further attempt is made: the task ends as failed or, if what it made cannot be kept,
    /// is parked.
    pub fn is_fatal(&self) -> bool {
        self.class == Class::Fatal || self.is_stuck()
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.class == Class::Stuck
    }

    /// Whether this is how [`RunCx::checkpoint`](crate::RunCx::checkpoint) says that the task is
    /// handed over.
    pub fn is_moved(&self) -> bool {
        self.class == Class::Moved
    }

    /// The error this one was made from, if it is an `E`.
    pub fn downcast_ref<E: StdError + 'static>(&self) -> Option<&E> {
        self.source.downcast_ref()
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        Self { class: Class::Retry, source: Box::new(error) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        let mut cause = self.source.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What `main` returns is printed this way: to say that it may be tried again would mislead there.
        match self.class {
            Class::Retry => write!(f, "{self}"),
            class => write!(f, "{self} ({class:?})"),
        }
    }
}

/// Says of a result's error whether trying again can help.
pub trait Classify<T> {
    /// The error is worth another attempt (what `?` assumes).
    ///
    /// # Errors
    /// The same error, as retryable.
    fn retryable(self) -> Result<T>;

    /// The error ends the task.
    ///
    /// # Errors
    /// The same error, as fatal.
    fn fatal(self) -> Result<T>;
}

impl<T, E: Into<Error>> Classify<T> for std::result::Result<T, E> {
    fn retryable(self) -> Result<T> {
        self.map_err(|error| Error { class: Class::Retry, ..error.into() })
    }

    fn fatal(self) -> Result<T> {
        self.map_err(|error| Error { class: Class::Fatal, ..error.into() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    fn outer() -> Result<(), Outer> {
        Err(Outer(std::io::Error::other("inner")))
    }

    #[test]
    fn a_converted_error_is_retryable_and_shows_its_causes() {
        fn converts() -> Result<()> {
            outer()?;
            Ok(())
        }
        let error = converts().unwrap_err();
        assert!(!error.is_fatal());
        assert_eq!(error.to_string(), "outer: inner");
        assert!(error.downcast_ref::<Outer>().is_some());
    }

    #[test]
    fn the_last_classification_counts() {
        assert!(outer().fatal().unwrap_err().is_fatal());
        assert!(!outer().fatal().retryable().unwrap_err().is_fatal());
    }

    #[test]
    fn a_panic_keeps_its_message() {
        let literal = std::panic::catch_unwind(|| panic!("literal")).unwrap_err();
        let formatted = std::panic::catch_unwind(|| panic!("number {}", 7)).unwrap_err();
        assert_eq!(Error::panicked("a step", &*literal).to_string(), "a step panicked: literal");
        assert_eq!(Error::panicked("a step", &*formatted).to_string(), "a step panicked: number 7");
    }
}
