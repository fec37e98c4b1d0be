//! Hands events to whoever wants to see them, inside one process.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::Event;

type Observer = Box<dyn Fn(&Event) + Send + Sync>;

/// A list of observers. Clones share it.
///
/// ```
/// use std::sync::mpsc;
/// use a3s_box_core::EventEmitter;
///
/// let emitter = EventEmitter::new();
/// let (sender, events) = mpsc::channel();
/// emitter.observe(move |event| {
///     // Fails only when nobody listens any more.
///     let _gone = sender.send(event.clone());
/// });
/// # drop(events);
/// ```
#[derive(Clone, Default)]
pub struct EventEmitter {
    observers: Arc<Mutex<Vec<Observer>>>,
}

impl EventEmitter {
    /// An emitter without observers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls `observer` with every later event, in order. It runs on the task that follows the
    /// shim: it must not block, and must not call this emitter.
    pub fn observe(&self, observer: impl Fn(&Event) + Send + Sync + 'static) {
        self.lock().push(Box::new(observer));
    }

    /// Shows `event` to every observer.
    pub fn emit(&self, event: &Event) {
        for observer in self.lock().iter() {
            observer(event);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Observer>> {
        // An observer that panicked left the list itself whole.
        self.observers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for EventEmitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventEmitter").field("observers", &self.lock().len()).finish()
    }
}
