//! `--config FILE`: what neither the command line nor a variable says.
//!
//! A key is the long name of a flag: at the top for every command that has it, in a table named as a command
//! (`[load.run]`) for that one. What the file says is put behind the command line as flags, so that clap checks all alike.
//! Flag beats variable beats file, also between flags that exclude each other.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, Id};
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use weir_client::weirfile::{Position, nearest};

use crate::connect::Output;
use crate::failure::Failure;

/// Why there is nothing to do.
#[derive(Debug)]
pub enum Stop {
    /// Help that was asked for, or a mistake on the command line.
    CommandLine(clap::Error),
    /// A mistake in the file, and whether results are wanted as JSON.
    File(Failure, bool),
}

/// What the file says, by flag.
type Said<'a> = BTreeMap<String, &'a Spanned<DeValue<'a>>>;

/// Parses the command line, with the file that it or `WEIR_CONFIG` names.
pub fn parse(command: &Command, mut given: Vec<OsString>) -> Result<ArgMatches, Stop> {
    // What is missing may stand in the file; what is wrong, and help, the last parse tells.
    let Ok(first) = command.clone().ignore_errors(true).try_get_matches_from(&given) else {
        return command.clone().try_get_matches_from(given).map_err(Stop::CommandLine);
    };
    let mut built = command.clone();
    built.build();
    let (mut called, mut names, mut matches) = (&built, Vec::new(), &first);
    while let Some((name, inner)) = matches.subcommand() {
        called = called.find_subcommand(name).expect("clap knows what it found");
        names.push(name);
        matches = inner;
    }
    let json = matches.try_get_one::<Output>("output").ok().flatten() == Some(&Output::Json);
    let wrong = |what| Stop::File(Failure::Usage(what), json);

    // Where another variable is wrong, the first parse may not have come to this one.
    let variable = called.get_arguments().find(|flag| flag.get_id() == "config").and_then(Arg::get_env);
    let variable = variable.and_then(std::env::var_os).map(PathBuf::from);
    let path = matches.get_one::<PathBuf>("config").or(variable.as_ref());
    let text = match path {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|cause| wrong(format!("cannot read the configuration {}: {cause}", path.display())))?,
        None => String::new(),
    };
    let file = File { path: path.map_or(Path::new(""), PathBuf::as_path), text: &text };
    let table = DeTable::parse(&text)
        .map_err(|error| wrong(file.wrong(error.span().unwrap_or_default(), error.message().to_owned())))?;
    let mut said = Said::new();
    file.read(table.get_ref(), &built, &every_flag(&built), Some(&names), &mut said).map_err(wrong)?;
    said.retain(|name, value| flags(called).any(|flag| flag.get_long() == Some(name) && takes(flag, value.get_ref())));

    let rank = |flag: &Arg| match flag.get_env() {
        _ if matches.value_source(flag.get_id().as_str()) == Some(ValueSource::CommandLine) => 3,
        Some(variable) if std::env::var_os(variable).is_some() => 2,
        _ if flag.get_long().is_some_and(|name| said.contains_key(name)) => 1,
        _ => 0,
    };
    // A switch that its variable turns off: the file does not turn it on, and it excludes nothing.
    let is_off = |flag: &Arg| {
        let variable = flag.get_env().and_then(std::env::var_os);
        rank(flag) == 2 && !flag.get_action().takes_values() && variable.is_some_and(|told| told == "false")
    };
    let beaten = |flag: &Arg| flags(called).any(|by| rank(by) > rank(flag) && !is_off(by) && exclude(called, flag, by));
    let silenced = flags(called).filter(|flag| rank(flag) == 2 && (is_off(flag) || beaten(flag)));
    let silenced: Vec<Id> = silenced.map(|flag| flag.get_id().clone()).collect();
    let mut added = BTreeMap::new();
    // A command that still lacks its verb takes no flags; after `--` there are none.
    if !called.is_subcommand_required_set() {
        let end = given.iter().position(|word| word == "--").unwrap_or(given.len());
        for flag in flags(called).filter(|flag| rank(flag) == 1 && !beaten(flag)) {
            let name = flag.get_long().expect("flags have long names");
            given.splice(end..end, words(name, said[name].get_ref()));
            added.insert(format!("--{name}"), said[name].span());
        }
    }
    without_variables(command.clone(), &silenced).try_get_matches_from(given).map_err(|error| {
        let Some(ContextValue::String(about)) = error.get(ContextKind::InvalidArg) else {
            return Stop::CommandLine(error);
        };
        match about.split([' ', '=']).next().and_then(|flag| added.get(flag)) {
            Some(span) => wrong(file.wrong(span.clone(), first_paragraph(&error))),
            None => Stop::CommandLine(error),
        }
    })
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    fn wrong(&self, span: Range<usize>, what: String) -> String {
        format!("{}: {what}", Position::find(self.path, self.text, span.start))
    }

    fn unknown(&self, kind: &str, name: &Spanned<impl AsRef<str>>, known: &[&str]) -> String {
        let (word, mut known) = (name.get_ref().as_ref(), known.to_vec());
        known.sort_unstable();
        known.dedup();
        let help = match nearest(word, known.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None if known.is_empty() => "none is known here".to_owned(),
            None => format!("known here: {}", known.join(", ")),
        };
        self.wrong(name.span(), format!("unknown {kind} `{word}`; {help}"))
    }

    /// Checks a command's table, and keeps what it says if the command is on the way to the `called` one.
    fn read<'t>(
        &self,
        table: &'t DeTable<'t>,
        command: &Command,
        known: &[&Arg],
        called: Option<&[&str]>,
        said: &mut Said<'t>,
    ) -> Result<(), String> {
        // Values first: a command's own table has the last word.
        let (tables, values): (Vec<_>, Vec<_>) = table.iter().partition(|(_, value)| value.get_ref().is_table());
        for (key, value) in values {
            let name = key.get_ref().as_ref();
            let meant: Vec<&Arg> = known.iter().filter(|flag| flag.get_long() == Some(name)).copied().collect();
            let Some(first) = meant.first() else {
                let names: Vec<&str> = known.iter().filter_map(|flag| flag.get_long()).collect();
                return Err(self.unknown("key", key, &names));
            };
            if !meant.iter().any(|flag| takes(flag, value.get_ref())) {
                return Err(self.wrong(value.span(), format!("`{name}` takes {}", wanted(first))));
            }
            if called.is_some() {
                said.insert(name.to_owned(), value);
            }
        }
        for (key, value) in tables {
            let name = key.get_ref().as_ref();
            let commands = || command.get_subcommands().filter(|command| command.get_name() != "help");
            let (Some(inner), Some(table)) = (commands().find(|c| c.get_name() == name), value.get_ref().as_table())
            else {
                return Err(self.unknown("table", key, &commands().map(Command::get_name).collect::<Vec<_>>()));
            };
            let below = called.and_then(|names| names.split_first()).filter(|(first, _)| **first == name);
            self.read(table, inner, &flags(inner).collect::<Vec<_>>(), below.map(|(_, rest)| rest), said)?;
        }
        Ok(())
    }
}

/// The flags of a command that a file may give.
fn flags(command: &Command) -> impl Iterator<Item = &Arg> {
    let gives = |flag: &&Arg| {
        flag.get_long().is_some_and(|name| name != "config")
            && matches!(flag.get_action(), ArgAction::Set | ArgAction::Append | ArgAction::SetTrue)
    };
    command.get_arguments().filter(gives)
}

fn every_flag(command: &Command) -> Vec<&Arg> {
    flags(command).chain(command.get_subcommands().flat_map(every_flag)).collect()
}

/// Whether only one of two flags can hold. A token and a file with one are told apart by nobody else.
fn exclude(command: &Command, a: &Arg, b: &Arg) -> bool {
    let names = [a.get_long(), b.get_long()];
    command.get_arg_conflicts_with(a).iter().any(|other| other.get_id() == b.get_id())
        || command.get_arg_conflicts_with(b).iter().any(|other| other.get_id() == a.get_id())
        || ["token", "token-file"].iter().all(|name| names.contains(&Some(name)))
}

fn without_variables(command: Command, silenced: &[Id]) -> Command {
    command
        .mut_args(|flag| if silenced.contains(flag.get_id()) { flag.env(None::<&str>) } else { flag })
        .mut_subcommands(|command| without_variables(command, silenced))
}

fn is_number(flag: &Arg) -> bool {
    let parsed = flag.get_value_parser().type_id();
    let numbers =
        [TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>(), TypeId::of::<usize>(), TypeId::of::<f64>()];
    numbers.iter().any(|number| parsed == *number)
}

/// Whether a value has the type of a flag; whether it can be read clap tells.
fn takes(flag: &Arg, value: &DeValue<'_>) -> bool {
    let valued = flag.get_action().takes_values();
    match value {
        DeValue::Boolean(_) => !valued,
        DeValue::String(_) => valued && !is_number(flag),
        DeValue::Integer(_) | DeValue::Float(_) => valued && is_number(flag),
        DeValue::Array(items) => {
            let mut items = items.iter().map(Spanned::get_ref);
            matches!(flag.get_action(), ArgAction::Append) && items.all(|item| !item.is_array() && takes(flag, item))
        }
        DeValue::Datetime(_) | DeValue::Table(_) => false,
    }
}

fn wanted(flag: &Arg) -> &'static str {
    match flag.get_action() {
        ArgAction::SetTrue => "true or false",
        ArgAction::Append if is_number(flag) => "a number or an array of them",
        ArgAction::Append => "a string or an array of them",
        _ if is_number(flag) => "a number",
        _ => "a string",
    }
}

/// A value as words of a command line.
fn words(flag: &str, value: &DeValue<'_>) -> Vec<OsString> {
    let word = |text: &str| vec![OsString::from(format!("--{flag}={text}"))];
    match value {
        DeValue::Boolean(true) => vec![format!("--{flag}").into()],
        DeValue::String(text) => word(text),
        DeValue::Integer(number) => word(&number.to_string()),
        DeValue::Float(number) => word(&number.to_string()),
        DeValue::Array(items) => items.iter().flat_map(|item| words(flag, item.get_ref())).collect(),
        DeValue::Boolean(false) | DeValue::Datetime(_) | DeValue::Table(_) => Vec::new(),
    }
}

fn first_paragraph(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
