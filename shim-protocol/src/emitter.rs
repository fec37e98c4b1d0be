//! [`EventEmitter`]: distributes events to the observers in a process.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::Event;

type Observer = Box<dyn Fn(&Event) + Send + Sync>;

/// A list of observers, each of which gets every event. Clones share the list.
///
/// ```
/// use std::sync::mpsc;
/// use a3s_box_core::{Event, EventEmitter};
///
/// let emitter = EventEmitter::new();
/// let (sender, events) = mpsc::channel();
/// emitter.observe(move |event| {
///     // The send fails only after the receiver was dropped.
///     let _dropped = sender.send(event.seq);
/// });
///
/// let line = r#"{"v":1,"seq":7,"time":"","elapsed_ms":4,"box_id":"a","type":"prepare.done"}"#;
/// let event: Event = serde_json::from_str(line)?;
/// emitter.emit(&event);
/// assert_eq!(events.recv(), Ok(7));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct EventEmitter {
    observers: Arc<Mutex<Vec<Observer>>>,
}

impl EventEmitter {
    /// Makes an emitter without observers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls `observer` with every later event, in order.
    ///
    /// The observer runs in the task that calls [`emit`](Self::emit), so it must not block. It must
    /// not call this emitter either, because the list of observers is locked meanwhile.
    pub fn observe(&self, observer: impl Fn(&Event) + Send + Sync + 'static) {
        self.lock().push(Box::new(observer));
    }

    /// Calls every observer with `event`, in the order in which they were added.
    pub fn emit(&self, event: &Event) {
        for observer in self.lock().iter() {
            observer(event);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Observer>> {
        // A panic of an observer poisons the lock, but it cannot damage the list.
        self.observers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for EventEmitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventEmitter").field("observers", &self.lock().len()).finish()
    }
}
