//! Whether gain tables are true: a few rows run every stage, whatever the gates say, so that the tables are not only confirmed by their own
//! decisions; and labels that callers bring later say who was right.
//!
//! What was found says something of the stages, gates and tables that it was found with, and of no others: where they change, it begins
//! anew.
//!
//! Without labels it is known how often a deeper stage says something else than the one before: it cannot gain more than that. With
//! labels it is known what it gained.

use std::time::Duration;

use super::{Endpoint, Gate, Stage};
use crate::history::Ring;
use crate::ids::QueryId;
use crate::router::Depth;

impl Endpoint {
    /// Why asking every stage about a row of it tells nothing, and what to do about that; nothing where it does.
    pub fn unauditable(&self) -> Option<&'static str> {
        if self.stages.len() < 2 {
            return Some("audits compare the stages of a cascade, and this endpoint has one; leave `audit` out");
        }
        if !self.is_chain() {
            return Some(
                "audits compare the stages of a cascade, each with the one before; of a graph they tell nothing; leave `audit` out",
            );
        }
        let untold = "audits compare the classes that stages say: name their `label_output`, or leave `audit` out";
        self.label_output.is_none().then_some(untold)
    }

    /// Part of its rows that are to be audited: none where that tells nothing, whoever declared that some are.
    pub fn audited(&self) -> f64 {
        if self.audit > 0.0 && self.unauditable().is_none() { self.audit } else { 0.0 }
    }

    /// How long a copy for an audit may take, of which nobody waits for the answer.
    pub fn copy_within(&self) -> Duration {
        COPY_WITHIN.max(4 * self.deadline)
    }

    /// How deep such a copy goes: all the way.
    pub fn copy_depth(&self) -> Depth {
        let last = self.stages.len() - 1;
        Depth { from: 0, least: last, most: last }
    }
}

/// Copies under way at most, at each home: they run in the gaps, and where there are none they are not piled up.
pub const COPIES_MAX: usize = 64;
/// How long a copy may take at least.
const COPY_WITHIN: Duration = Duration::from_secs(1);

/// Audited rows that wait for a label.
const KEPT: usize = 4096;

/// A row that every stage was asked about.
#[derive(Clone, Debug, PartialEq)]
pub struct Audited {
    /// Of the query that it repeats.
    pub id: QueryId,
    /// By stage: what the gate behind it looks at, and the class; `None` where it gave none.
    pub said: Vec<Option<(f32, u32)>>,
}

/// What audits found about one gate. Sums over rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GateAudit {
    /// Rows that were audited.
    pub rows: u64,
    /// Of them, those of which the stage behind the gate says something else than the one before it.
    pub differ: u64,
    /// What the table says that the stage behind it gains.
    pub expected: f64,
    /// Rows whose label is known.
    pub labelled: u64,
    /// What the table says of those.
    pub expected_of_labelled: f64,
    /// What it gained in them: 1 where the deeper stage alone is right, -1 where the shallower one alone is.
    pub gained: f64,
}

impl GateAudit {
    /// Those of another too.
    pub fn merge(&mut self, other: &GateAudit) {
        self.rows += other.rows;
        self.differ += other.differ;
        self.expected += other.expected;
        self.labelled += other.labelled;
        self.expected_of_labelled += other.expected_of_labelled;
        self.gained += other.gained;
    }
}

/// Answers whose label somebody has told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Labelled {
    /// All of them.
    pub answers: u64,
    /// Those that were right.
    pub right: u64,
}

impl Labelled {
    /// Those of another too.
    pub fn merge(&mut self, other: Labelled) {
        self.answers += other.answers;
        self.right += other.right;
    }

    /// What was told since the same was `before`: all of it where counting has begun anew.
    pub fn since(self, before: Labelled) -> Labelled {
        let more = |now: u64, then: u64| now.checked_sub(then);
        match (more(self.answers, before.answers), more(self.right, before.right)) {
            (Some(answers), Some(right)) if right <= answers => Labelled { answers, right },
            _ => self,
        }
    }

    /// Share of them that is right; nothing where none is known.
    pub fn accuracy(self) -> Option<f64> {
        (self.answers > 0).then(|| self.right as f64 / self.answers as f64)
    }

    /// Standard error of that share, as estimated with two answers and two failures more (Agresti and Coull 1998): few answers that are
    /// all right prove little.
    pub fn error(self) -> Option<f64> {
        let answers = self.answers as f64 + 4.0;
        let share = (self.right as f64 + 2.0) / answers;
        (self.answers > 0).then(|| (share * (1.0 - share) / answers).sqrt())
    }
}

/// Audits of one endpoint at one home, and labels of its answers.
#[derive(Debug)]
pub struct Audit {
    /// Of the endpoint that everything here was found about.
    stages: Vec<Stage>,
    rows: Ring<Audited>,
    gates: Vec<GateAudit>,
    labelled: Labelled,
}

impl Default for Audit {
    fn default() -> Audit {
        Audit { stages: Vec::new(), rows: Ring::new(KEPT), gates: Vec::new(), labelled: Labelled::default() }
    }
}

impl Audit {
    /// The endpoint is this now: what was found about others is forgotten.
    pub fn on_endpoint(&mut self, endpoint: &Endpoint) {
        if !self.is_about(endpoint) {
            *self = Audit { stages: endpoint.stages.clone(), ..Audit::default() };
        }
    }

    /// Every stage was asked about a row, of the endpoint as it was then.
    pub fn on_audited(&mut self, endpoint: &Endpoint, audited: Audited) {
        if !self.is_about(endpoint) {
            return;
        }
        self.gates.resize(self.stages.len(), GateAudit::default());
        for (stage, gate) in self.gates.iter_mut().enumerate().skip(1) {
            let (Some(before), Some(after)) = (audited.said[stage - 1], audited.said[stage]) else { continue };
            gate.rows += 1;
            gate.differ += u64::from(before.1 != after.1);
            gate.expected += expected(&self.stages, stage, before.0);
        }
        self.rows.push(audited);
    }

    /// An answer of the endpoint as it was then turned out to be right, or not.
    pub fn on_answer_labelled(&mut self, endpoint: &Endpoint, right: bool) {
        if self.is_about(endpoint) {
            self.labelled.merge(Labelled { answers: 1, right: u64::from(right) });
        }
    }

    /// A label came for a query: it counts where that was audited and not labelled before.
    pub fn on_label(&mut self, id: QueryId, label: u32) {
        let Some(row) = self.rows.iter_mut().find(|row| row.id == id) else { return };
        let said = std::mem::take(&mut row.said);
        for (stage, gate) in self.gates.iter_mut().enumerate().skip(1) {
            let (Some(Some(before)), Some(Some(after))) = (said.get(stage - 1), said.get(stage)) else { continue };
            gate.labelled += 1;
            gate.expected_of_labelled += expected(&self.stages, stage, before.0);
            gate.gained += f64::from(i8::from(after.1 == label) - i8::from(before.1 == label));
        }
    }

    /// Whether what was found is about these stages, behind these gates. An endpoint with one stage has several models while they are rolled
    /// out, and no gate that could be wrong about them.
    fn is_about(&self, endpoint: &Endpoint) -> bool {
        let alone = self.stages.len() == 1;
        let alike = |(a, b): (&Stage, &Stage)| a.name == b.name && a.gate == b.gate && (alone || a.run == b.run);
        self.stages.len() == endpoint.stages.len() && self.stages.iter().zip(&endpoint.stages).all(alike)
    }

    /// By stage, what was found about the gate before it; nothing of the first. Empty where no row was audited.
    pub fn gates(&self) -> &[GateAudit] {
        &self.gates
    }

    /// What labels say of its answers.
    pub fn labelled(&self) -> Labelled {
        self.labelled
    }
}

/// What the table of the gate before a stage says that it gains.
fn expected(stages: &[Stage], stage: usize, signal: f32) -> f64 {
    match stages.get(stage).and_then(|stage| stage.gate.as_ref()) {
        Some(Gate::Gain { table, .. }) => table.read(signal, |bin| table.bins()[bin].gain),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::GainTable;
    use super::super::gain::Bin;
    use super::super::graph::{Combine, How, Run};
    use super::super::tests::endpoint;
    use super::*;

    fn table(gains: [f64; 2]) -> Option<Gate> {
        let bin = |confidence, gain| Bin { confidence, rows: 100, right: 0.5, gain, error: 0.01, next: Vec::new() };
        let table = Arc::new(GainTable::new(vec![bin(0.2, gains[0]), bin(0.8, gains[1])]).unwrap());
        Some(Gate::Gain { table, min_gain: 0.0 })
    }

    fn labelled(answers: u64, right: u64) -> Labelled {
        Labelled { answers, right }
    }

    #[test]
    fn few_labels_say_little_even_where_all_are_right() {
        assert_eq!((Labelled::default().accuracy(), Labelled::default().error()), (None, None));
        let of =
            |answers, right| (labelled(answers, right).accuracy().unwrap(), labelled(answers, right).error().unwrap());
        assert_eq!(of(4, 4).0, 1.0);
        assert!(of(4, 4).1 > 0.1 && of(400, 400).1 < 0.01, "{:?} {:?}", of(4, 4), of(400, 400));
        assert!((of(10_000, 9000).1 - 0.003).abs() < 1e-5, "as of any share: {:?}", of(10_000, 9000));
    }

    #[test]
    fn what_was_told_since_then_is_all_where_counting_began_anew() {
        assert_eq!(labelled(30, 20).since(labelled(10, 5)), labelled(20, 15));
        assert_eq!(labelled(30, 20).since(labelled(30, 20)), Labelled::default());
        assert_eq!(labelled(8, 8).since(labelled(10, 5)), labelled(8, 8), "fewer than before");
        assert_eq!(labelled(12, 12).since(labelled(10, 5)), labelled(12, 12), "more right than were told");
    }

    #[test]
    fn labels_tell_what_a_table_is_worth() {
        let cascade = endpoint(&[("a", None), ("b", table([0.0, 0.5]))]);
        let mut audit = Audit::default();
        audit.on_endpoint(&cascade);
        // Whoever is sure is right, and whoever is not is helped: the table has it the wrong way round.
        for id in 0..10u32 {
            let sure = id % 2 == 0;
            let said = vec![Some((if sure { 0.8 } else { 0.2 }, u32::from(sure))), Some((0.9, 1))];
            audit.on_audited(&cascade, Audited { id: QueryId(u128::from(id)), said });
        }
        audit.on_audited(&cascade, Audited { id: QueryId(99), said: vec![Some((0.5, 1)), None] });
        let gate = audit.gates()[1];
        assert_eq!((gate.rows, gate.differ, gate.labelled), (10, 5, 0));
        assert!((gate.expected - 2.5).abs() < 1e-6);
        for _ in 0..2 {
            // The odd ones alone, twice: a label counts once.
            (0..5).for_each(|i| audit.on_label(QueryId(2 * i + 1), 1));
        }
        audit.on_label(QueryId(1000), 1);
        let gate = audit.gates()[1];
        assert_eq!((gate.labelled, gate.gained, gate.expected_of_labelled), (5, 5.0, 0.0));
        audit.on_answer_labelled(&cascade, true);
        audit.on_answer_labelled(&cascade, false);
        assert_eq!(audit.labelled(), labelled(2, 1));
    }

    #[test]
    fn with_other_tables_or_stages_audits_begin_anew() {
        let before = endpoint(&[("a", None), ("b", table([0.0, 0.5]))]);
        let row = |id| Audited { id: QueryId(id), said: vec![Some((0.8, 1)), Some((0.9, 1))] };
        let mut audit = Audit::default();
        audit.on_endpoint(&before);
        audit.on_audited(&before, row(1));
        audit.on_answer_labelled(&before, true);
        // The same, applied again.
        audit.on_endpoint(&endpoint(&[("a", None), ("b", table([0.0, 0.5]))]));
        assert_eq!((audit.gates()[1].rows, audit.labelled()), (1, labelled(1, 1)));

        let after = endpoint(&[("a", None), ("b", table([0.0, 0.1]))]);
        audit.on_endpoint(&after);
        assert_eq!((audit.gates(), audit.labelled()), ([].as_slice(), Labelled::default()));
        // What was under way then comes late, and so do labels of what was asked then.
        audit.on_audited(&before, row(2));
        audit.on_answer_labelled(&before, true);
        audit.on_label(QueryId(1), 1);
        assert_eq!((audit.gates(), audit.labelled()), ([].as_slice(), Labelled::default()));
        audit.on_audited(&after, row(3));
        audit.on_label(QueryId(3), 1);
        let gate = audit.gates()[1];
        assert!((gate.expected - 0.1).abs() < 1e-6 && gate.labelled == 1, "by the table that holds: {gate:?}");

        let between = endpoint(&[("a", None), ("new", GATE), ("b", table([0.0, 0.1]))]);
        audit.on_endpoint(&between);
        assert_eq!(audit.gates(), [], "stages have other numbers");
        let mut other = between.clone();
        other.stages[2].run = other.stages[0].run.clone();
        audit.on_audited(&between, Audited { id: QueryId(4), said: vec![None, Some((0.5, 1)), Some((0.9, 0))] });
        assert_eq!(audit.gates()[2].rows, 1);
        audit.on_endpoint(&other);
        assert_eq!(audit.gates(), [], "another model");
    }

    const GATE: Option<Gate> = Some(Gate::ConfidenceBelow(0.9));

    #[test]
    fn what_audits_can_tell_nothing_of_is_known_beforehand() {
        let cascade = endpoint(&[("a", None), ("b", GATE)]);
        assert_eq!(cascade.unauditable(), None);
        let unnamed = Endpoint { label_output: None, confidence_output: Some("sure".into()), ..cascade.clone() };
        assert!(unnamed.unauditable().unwrap().contains("label_output"), "it says how sure it is, and not of what");
        assert!(endpoint(&[("a", None)]).unauditable().unwrap().contains("has one"));
        let mut graph = cascade;
        graph.stages[1].run = Run::Combine(Combine { how: How::Mean, at_least: None });
        assert!(graph.unauditable().unwrap().contains("graph"));
    }

    #[test]
    fn versions_of_one_model_are_labelled_together() {
        let (old, mut new) = (endpoint(&[("a", None)]), endpoint(&[("a", None)]));
        new.stages[0].run = endpoint(&[("b", None)]).stages[0].run.clone();
        let mut audit = Audit::default();
        audit.on_endpoint(&old);
        audit.on_answer_labelled(&old, true);
        audit.on_answer_labelled(&new, false);
        assert_eq!(audit.labelled(), labelled(2, 1));
    }
}
