//! The stages of an endpoint: models and what combines them, where their inputs come from, and when they run.

use toml::Spanned;
use weir_core::endpoint::graph::{Comparison, How, Signal};
use weir_core::endpoint::{Combine, Condition, Feed};
use weir_core::ids::StageName;

use super::{BadWeirFile, Does, Source, StageDeclaration, StageTable, nearest};

/// What inputs are called that come with the query.
const REQUEST: &str = "request";

impl Source<'_> {
    pub(super) fn stages(&self, tables: &[Spanned<StageTable>]) -> Result<Vec<StageDeclaration>, BadWeirFile> {
        let mut stages: Vec<StageDeclaration> = Vec::new();
        for spanned in tables {
            let stage = self.stage(spanned, &stages)?;
            stages.push(stage);
        }
        Ok(stages)
    }

    fn stage(
        &self,
        spanned: &Spanned<StageTable>,
        before: &[StageDeclaration],
    ) -> Result<StageDeclaration, BadWeirFile> {
        let table = spanned.get_ref();
        let name = StageName::parse(table.name.get_ref()).map_err(|e| self.wrong(&table.name.span(), e.to_string()))?;
        if name.as_str() == REQUEST {
            return Err(
                self.wrong(&table.name.span(), "`request` is what comes with the query; call the stage otherwise")
            );
        }
        if before.iter().any(|other| other.name == name) {
            return Err(self.wrong(&table.name.span(), format!("stage `{name}` stands twice in this endpoint")));
        }
        let gate = match &table.gate {
            None => None,
            Some(gate) if before.is_empty() => {
                return Err(
                    self.wrong(&gate.span(), "the first stage always runs: a gate stands in the stage that it guards")
                );
            }
            Some(gate) => Some(self.gate(gate)?),
        };
        let does = match (&table.model, &table.combine) {
            (Some(model), None) => {
                let combines = table.weights.as_ref().map(Spanned::span).or(table.at_least.as_ref().map(Spanned::span));
                if let Some(span) = combines {
                    return Err(self.wrong(&span, "weights and at_least go with `combine`"));
                }
                Does::Model(self.mention(model)?)
            }
            (None, Some(how)) => Does::Combine(self.combine(how, table)?),
            _ => {
                return Err(self.wrong(&spanned.span(), format!("stage `{name}` has either a `model` or a `combine`")));
            }
        };
        let inputs = table.inputs.iter().map(|(input, from)| self.feed(input, from, before));
        Ok(StageDeclaration {
            name,
            does,
            gate,
            inputs: inputs.collect::<Result<_, _>>()?,
            when: table.when.as_ref().map(|when| self.condition(when, before)).transpose()?,
        })
    }

    fn combine(&self, how: &Spanned<String>, table: &StageTable) -> Result<Combine, BadWeirFile> {
        let weights = table.weights.as_ref();
        let how = match (how.get_ref().as_str(), weights) {
            ("mean", None) => How::Mean,
            ("vote", None) => How::Vote,
            ("concat", None) => How::Concat,
            ("mean" | "weighted", Some(weights)) => {
                // In the order of the inputs, which is that of their names.
                let of = weights.get_ref();
                if !of.keys().eq(table.inputs.keys()) {
                    return Err(self.wrong(&weights.span(), "weights need a number for each of `inputs`, by name"));
                }
                How::Weighted(of.values().copied().collect())
            }
            ("weighted", None) => {
                return Err(self.wrong(&how.span(), "say with `weights` how much each input counts, by name"));
            }
            (word, _) => {
                let known = ["mean", "weighted", "vote", "concat"];
                let guess = nearest(word, known).map(|meant| format!("; did you mean `{meant}`?")).unwrap_or_default();
                let why = if known.contains(&word) { "takes no weights" } else { "is nothing that can be combined by" };
                return Err(self.wrong(&how.span(), format!("`{word}` {why}{guess}; known are {}", known.join(", "))));
            }
        };
        Ok(Combine { how, at_least: table.at_least.as_ref().map(|least| *least.get_ref()) })
    }

    /// `request.x`, `tiny.hidden`, or `cutter.crops[]` for each item of it.
    fn feed(&self, input: &str, from: &Spanned<String>, before: &[StageDeclaration]) -> Result<Feed, BadWeirFile> {
        let (text, each) = match from.get_ref().strip_suffix("[]") {
            Some(text) => (text, true),
            None => (from.get_ref().as_str(), false),
        };
        let (stage, tensor) = self.place(from, text, before)?;
        Ok(Feed { input: input.to_owned(), stage, tensor: tensor.to_owned(), each })
    }

    /// A stage before, by number, and what of it; names of stages may have dots in them.
    fn place<'t>(
        &self,
        spanned: &Spanned<String>,
        text: &'t str,
        before: &[StageDeclaration],
    ) -> Result<(Option<u32>, &'t str), BadWeirFile> {
        let of = |name: &str| text.strip_prefix(name)?.strip_prefix('.').filter(|rest| !rest.is_empty());
        if let Some(tensor) = of(REQUEST) {
            return Ok((None, tensor));
        }
        let known = before.iter().enumerate().filter_map(|(i, stage)| {
            let rest = of(stage.name.as_str())?;
            Some((stage.name.as_str().len(), i as u32, rest))
        });
        if let Some((_, stage, rest)) = known.max() {
            return Ok((Some(stage), rest));
        }
        let names = std::iter::once(REQUEST).chain(before.iter().map(|stage| stage.name.as_str()));
        let first = text.split('.').next().unwrap_or_default();
        let guess = nearest(first, names.clone()).filter(|meant| *meant != first);
        let guess = guess.map(|meant| format!("; did you mean `{meant}`?")).unwrap_or_default();
        let known = names.collect::<Vec<_>>().join(", ");
        Err(self.wrong(
            &spanned.span(),
            format!("`{text}` names nothing that stands before; write it as `stage.output` of {known}{guess}"),
        ))
    }

    /// `tiny.confidence < 0.9`.
    fn condition(&self, text: &Spanned<String>, before: &[StageDeclaration]) -> Result<Condition, BadWeirFile> {
        let wrong = || {
            let example = "write it as \"tiny.confidence < 0.9\": confidence, margin, entropy, label or an output of a stage, one of < <= > >= == !=, and a number";
            self.wrong(&text.span(), format!("`{}` is no condition; {example}", text.get_ref()))
        };
        let written = text.get_ref();
        // Of those that begin alike the longer one.
        let found = Comparison::ALL
            .into_iter()
            .filter_map(|is| Some((written.find(is.word())?, std::cmp::Reverse(is.word().len()), is)))
            .min_by_key(|(at, length, _)| (*at, *length));
        let (at, _, is) = found.ok_or_else(wrong)?;
        let (left, right) = (written[..at].trim(), written[at + is.word().len()..].trim());
        let than: f32 = right.parse().ok().filter(|than: &f32| than.is_finite()).ok_or_else(wrong)?;
        let (stage, signal) = self.place(text, left, before)?;
        let stage =
            stage.ok_or_else(|| self.wrong(&text.span(), "a condition looks at a stage, not at the request"))?;
        Ok(Condition { stage, signal: Signal::parse(signal), is, than })
    }
}
