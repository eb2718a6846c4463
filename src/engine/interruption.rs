//! When a cancellation may interrupt the connection of its statement.
//!
//! DuckDB's interrupt is a flag of the connection, and not of a statement: one that comes after its statement has ended
//! meets the next statement there, and one that meets a running SELECT aborts the transaction around it. So a
//! cancellation reaches the connection only from [`Interruption::begin`] to [`Interruption::end`], and a statement in an
//! open transaction is first given time to notice by itself. Knows nothing of SQL, threads or time.

use std::sync::Mutex;

use super::pool::lock;

/// What a cancellation interrupts.
pub(super) trait Interrupt {
    fn interrupt(&self);
}

impl Interrupt for duckdb::connection::InterruptHandle {
    fn interrupt(&self) {
        // A connection that is gone has nothing to interrupt.
        let _ = Self::interrupt(self);
    }
}

/// How a cancellation ends a statement that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// The connection is interrupted at once.
    AtOnce,
    /// The statement looks for a cancellation between its steps, and closes its result without an interrupt. The connection
    /// is interrupted only when that takes too long.
    Patiently,
}

/// What a cancellation has left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    Nothing,
    /// To call [`Interruption::insist`] after a while.
    Insist,
}

/// Whether one statement's cancellation may interrupt its connection.
#[derive(Debug)]
pub(super) struct Interruption<C>(Mutex<State<C>>);

#[derive(Debug)]
struct State<C> {
    /// The connection while the statement runs on it.
    running: Option<(C, Manner)>,
    /// Whether the connection has been interrupted, so that its flag may still be set.
    interrupted: bool,
}

impl<C> Default for Interruption<C> {
    fn default() -> Self {
        Self(Mutex::new(State { running: None, interrupted: false }))
    }
}

impl<C: Interrupt> Interruption<C> {
    /// The statement runs on this connection from now on. The caller asks afterwards whether it was cancelled before.
    pub(super) fn begin(&self, connection: C, manner: Manner) {
        lock(&self.0).running = Some((connection, manner));
    }

    /// From now on a cancellation interrupts at once. The caller asks afterwards whether there was one before.
    pub(super) fn at_once(&self) {
        if let Some((_, manner)) = &mut lock(&self.0).running {
            *manner = Manner::AtOnce;
        }
    }

    /// The statement is cancelled.
    pub(super) fn cancel(&self) -> Left {
        let manner = lock(&self.0).running.as_ref().map(|(_, manner)| *manner);
        match manner {
            None => Left::Nothing,
            Some(Manner::Patiently) => Left::Insist,
            Some(Manner::AtOnce) => {
                self.insist();
                Left::Nothing
            }
        }
    }

    /// Interrupts the connection if the statement still runs on it.
    pub(super) fn insist(&self) {
        let mut state = lock(&self.0);
        if let Some((connection, _)) = &state.running {
            connection.interrupt();
            state.interrupted = true;
        }
    }

    /// Nothing of the statement runs any more. Answers whether the connection's flag may be set, and has to be cleared before
    /// the next statement.
    pub(super) fn end(&self) -> bool {
        let mut state = lock(&self.0);
        state.running = None;
        state.interrupted
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        rc::Rc,
    };

    use super::*;

    /// A connection as DuckDB has it: a flag, and what runs there.
    #[derive(Default)]
    struct Connection {
        flag: Cell<bool>,
        running: Cell<Option<usize>>,
        /// A transaction is open on it, and was not aborted.
        sound: Cell<bool>,
    }

    /// The handle that a statement's cancellation has.
    struct Handle {
        connection: Rc<Connection>,
        of: usize,
        patience_is_over: Rc<Cell<bool>>,
        manner: Manner,
        /// It is the statement's own thread that calls.
        own: Rc<Cell<bool>>,
    }

    impl Interrupt for Handle {
        fn interrupt(&self) {
            assert_eq!(self.connection.running.get(), Some(self.of), "an interrupt met what is not its own");
            assert!(
                self.manner == Manner::AtOnce || self.patience_is_over.get() || self.own.get(),
                "an interrupt came too early"
            );
            self.connection.flag.set(true);
        }
    }

    /// One statement: what the real one has, and what it is cancelled with.
    struct Statement {
        interruption: Interruption<Handle>,
        cancelled: Cell<bool>,
        left: Cell<Option<Left>>,
        patience_is_over: Rc<Cell<bool>>,
        manner: Manner,
        own: Rc<Cell<bool>>,
        /// It gave up, because it was cancelled.
        gave_up: Cell<bool>,
        /// Whether its last step met an interrupt.
        met: Cell<bool>,
    }

    /// What the threads around a pinned connection do, each in an order of its own.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Event {
        /// The engine thread.
        Begin(usize),
        Step(usize),
        End(usize),
        /// A client closes a cursor, a deadline passes, a statement is killed.
        Cancel(usize),
        Insist(usize),
        /// Someone rolls back: takes what runs, then ends that at once.
        Look,
        EndAtOnce,
    }

    struct World {
        connection: Rc<Connection>,
        statements: Vec<Statement>,
        /// What is registered to be ended by a rollback.
        registered: Cell<Option<usize>>,
        looked: Cell<Option<usize>>,
        trace: RefCell<Vec<Event>>,
    }

    impl World {
        fn new(manners: &[Manner]) -> Self {
            let connection = Rc::new(Connection::default());
            connection.sound.set(true);
            let statements = manners.iter().map(|manner| Statement {
                interruption: Interruption::default(),
                cancelled: Cell::new(false),
                left: Cell::new(None),
                patience_is_over: Rc::default(),
                manner: *manner,
                own: Rc::default(),
                gave_up: Cell::new(false),
                met: Cell::new(false),
            });
            Self {
                connection,
                statements: statements.collect(),
                registered: Cell::new(None),
                looked: Cell::new(None),
                trace: RefCell::default(),
            }
        }

        fn happens(&self, event: Event) {
            self.trace.borrow_mut().push(event);
            match event {
                Event::Begin(of) => {
                    let statement = &self.statements[of];
                    assert!(!self.connection.flag.get(), "an interrupt was left behind for statement {of}");
                    self.connection.running.set(Some(of));
                    self.registered.set(Some(of));
                    let handle = Handle {
                        connection: self.connection.clone(),
                        of,
                        patience_is_over: statement.patience_is_over.clone(),
                        manner: statement.manner,
                        own: statement.own.clone(),
                    };
                    statement.interruption.begin(handle, statement.manner);
                    statement.gave_up.set(statement.cancelled.get());
                }
                Event::Step(of) => {
                    let statement = &self.statements[of];
                    if statement.gave_up.get() {
                        return;
                    }
                    if self.connection.flag.get() {
                        // DuckDB aborts the transaction, and the statement fails.
                        self.connection.sound.set(false);
                        statement.met.set(true);
                        statement.gave_up.set(true);
                    } else if statement.cancelled.get() {
                        // The result is closed: its tasks are told, and the transaction stays as it is.
                        statement.own.set(true);
                        statement.interruption.insist();
                        statement.own.set(false);
                        statement.gave_up.set(true);
                    }
                }
                Event::End(of) => {
                    let interrupted = self.statements[of].interruption.end();
                    assert!(interrupted || !self.connection.flag.get(), "nobody knows of the interrupt");
                    if interrupted {
                        self.connection.flag.set(false);
                    }
                    self.connection.running.set(None);
                    self.registered.set(None);
                }
                Event::Cancel(of) => {
                    let statement = &self.statements[of];
                    statement.cancelled.set(true);
                    statement.left.set(Some(statement.interruption.cancel()));
                }
                Event::Insist(of) => {
                    let statement = &self.statements[of];
                    if statement.left.get() == Some(Left::Insist) {
                        statement.patience_is_over.set(true);
                        statement.interruption.insist();
                    }
                }
                Event::Look => self.looked.set(self.registered.get()),
                Event::EndAtOnce => {
                    if let Some(of) = self.looked.get() {
                        let statement = &self.statements[of];
                        statement.cancelled.set(true);
                        statement.patience_is_over.set(true);
                        statement.interruption.insist();
                    }
                }
            }
        }
    }

    /// Every order of the threads' events.
    fn every_order(threads: &[&[Event]], visit: &mut impl FnMut(&[Event])) {
        fn go(left: &mut [&[Event]], so_far: &mut Vec<Event>, visit: &mut impl FnMut(&[Event])) {
            let mut some = false;
            for thread in 0..left.len() {
                let events = left[thread];
                let Some((next, rest)) = events.split_first() else { continue };
                some = true;
                left[thread] = rest;
                so_far.push(*next);
                go(left, so_far, visit);
                so_far.pop();
                left[thread] = events;
            }
            if !some {
                visit(so_far);
            }
        }
        go(&mut threads.to_vec(), &mut Vec::new(), visit);
    }

    #[test]
    fn no_interrupt_meets_another_statement_in_any_order_of_events() {
        use Event::*;
        use Manner::*;
        let engine = [Begin(0), Step(0), Step(0), End(0), Begin(1), Step(1), Step(1), End(1)];
        let (first, second, rollback) = ([Cancel(0), Insist(0)], [Cancel(1), Insist(1)], [Look, EndAtOnce]);
        for manners in [[AtOnce, AtOnce], [AtOnce, Patiently], [Patiently, AtOnce], [Patiently, Patiently]] {
            let mut orders = 0;
            every_order(&[&engine, &first, &second, &rollback], &mut |order| {
                orders += 1;
                let world = World::new(&manners);
                order.iter().for_each(|event| world.happens(*event));
                for (of, statement) in world.statements.iter().enumerate() {
                    let mine = |event: &Event| *event == Step(of);
                    let last_step = order.iter().rposition(mine).expect("it has steps");
                    let cancelled = order.iter().position(|event| *event == Cancel(of)).expect("it is cancelled");
                    if cancelled < last_step {
                        assert!(statement.gave_up.get(), "{of} went on although it was cancelled: {order:?}");
                    }
                    let insisted = order.iter().position(|event| *event == Insist(of)).expect("it is insisted");
                    let rolled_back = order.iter().position(|event| *event == EndAtOnce).expect("a rollback");
                    if manners[of] == Patiently && insisted > last_step && rolled_back > last_step {
                        assert!(!statement.met.get(), "{of} lost its transaction: {order:?}");
                    }
                }
                let lost = world.statements.iter().any(|statement| statement.met.get());
                assert_eq!(world.connection.sound.get(), !lost);
            });
            assert_eq!(orders, 14 * 13 * 12 * 11 * 10 * 9 / 8, "each order once");
        }
    }

    #[test]
    fn what_changes_something_is_interrupted_at_once_although_it_began_patiently() {
        let connection = Rc::new(Connection::default());
        connection.running.set(Some(0));
        let handle = Handle {
            connection: connection.clone(),
            of: 0,
            patience_is_over: Rc::new(Cell::new(true)),
            manner: Manner::Patiently,
            own: Rc::default(),
        };
        let interruption = Interruption::default();
        interruption.begin(handle, Manner::Patiently);
        assert_eq!(interruption.cancel(), Left::Insist);
        assert!(!connection.flag.get());
        interruption.at_once();
        assert_eq!(interruption.cancel(), Left::Nothing);
        assert!(connection.flag.get() && interruption.end());
        assert_eq!(interruption.cancel(), Left::Nothing, "it is over");
    }
}
