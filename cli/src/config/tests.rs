//! Without variables: a test that is about them runs the binary, in `tests/processes/config.rs`.

use clap::CommandFactory;

use super::*;

/// A command and those below it, by their words.
fn every_command(command: &Command, words: &str) -> Vec<(String, Command)> {
    let inner = command.get_subcommands().filter(|inner| inner.get_name() != "help");
    let mut found: Vec<_> =
        inner.flat_map(|inner| every_command(inner, format!("{words} {}", inner.get_name()).trim_start())).collect();
    found.push((words.to_owned(), command.clone()));
    found
}

fn built() -> Command {
    let mut command = crate::Arguments::command();
    command.build();
    command
}

/// The program as it is where no variable is set.
fn bare() -> Command {
    let every: Vec<Id> = every_command(&built(), "")
        .iter()
        .flat_map(|(_, command)| command.get_arguments().map(|argument| argument.get_id().clone()))
        .collect();
    without_variables(crate::Arguments::command(), &every)
}

/// Parses `weir WORDS --config FILE`, the file containing `text`.
fn parse_with(text: &str, words: &str) -> Result<ArgMatches, Stop> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weir.toml");
    std::fs::write(&path, text).unwrap();
    let mut given: Vec<OsString> = vec!["weir".into(), "--config".into(), path.into()];
    given.extend(words.split_whitespace().map(OsString::from));
    parse(&bare(), given)
}

/// What a flag's argument is after parsing, joined by spaces.
fn value(text: &str, words: &str, flag: &str) -> String {
    let matches = parse_with(text, words).unwrap_or_else(|stop| panic!("{stop:?}"));
    let mut leaf = &matches;
    while let Some((_, inner)) = leaf.subcommand() {
        leaf = inner;
    }
    let raw = leaf.get_raw(flag).into_iter().flatten();
    raw.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// The sentence about a mistake in the file, from its name on.
fn mistake(text: &str, words: &str) -> String {
    match parse_with(text, words) {
        Err(Stop::File(failure, _)) => {
            assert_eq!(failure.code(), 2);
            let text = failure.to_string();
            text[text.find("weir.toml").expect("it names the file")..].to_owned()
        }
        other => panic!("no mistake in the file: {other:?}"),
    }
}

#[test]
fn every_flag_of_every_command_has_a_variable() {
    for (words, command) in every_command(&built(), "") {
        let of_clap = ["help", "version"];
        for flag in command.get_arguments().filter(|argument| !of_clap.contains(&argument.get_id().as_str())) {
            let Some(name) = flag.get_long() else {
                assert!(flag.is_positional(), "{words}: {} has no long name", flag.get_id());
                continue;
            };
            let prefix = match (words.as_str(), name) {
                // Elsewhere it means addresses.
                ("up", "coordinators") => "WEIR_UP_",
                // Elsewhere it means which rows.
                ("load run" | "load capacity" | "simulate" | "plan", "rows") => "WEIR_LOAD_",
                _ => "WEIR_",
            };
            let variable = format!("{prefix}{}", name.to_uppercase().replace('-', "_"));
            assert_eq!(flag.get_env(), Some(variable.as_ref()), "{words} --{name}");
        }
    }
}

#[test]
fn every_flag_is_a_switch_a_number_or_text() {
    let text = [TypeId::of::<String>(), TypeId::of::<PathBuf>(), TypeId::of::<Output>()];
    for (words, command) in every_command(&built(), "") {
        for flag in flags(&command) {
            let parsed = flag.get_value_parser().type_id();
            let known = is_number(flag) || text.iter().any(|text| parsed == *text);
            assert!(known || matches!(flag.get_action(), ArgAction::SetTrue), "{words} {:?}", flag.get_long());
        }
    }
}

#[test]
fn the_command_line_beats_the_file_and_the_file_beats_defaults() {
    assert_eq!(value("", "up", "nodes"), "1");
    assert_eq!(value("nodes = 3", "up", "nodes"), "3");
    assert_eq!(value("nodes = 3", "up --nodes 2", "nodes"), "2");
    assert_eq!(value("output = 'json'", "status", "output"), "json");
    assert_eq!(value("output = 'json'", "status -o table", "output"), "table");
    assert_eq!(value("output = 'json'", "member -o table remove c2", "output"), "table");
    assert_eq!(value("deadline = '5ms'", "predict --input i -- e", "deadline"), "5ms");
}

#[test]
fn a_command_s_table_beats_the_top_and_is_for_it_alone() {
    let text =
        "deadline = '1s'\npace = 0.5\n[load.run]\ndeadline = '50ms'\n[load]\noutput = 'json'\n[predict]\nrows = '0:4'";
    let load = "load run --endpoint e --data d --rate 1";
    assert_eq!(value(text, load, "deadline"), "50ms");
    assert_eq!(value(text, load, "output"), "json");
    assert_eq!(value(text, "predict e --input i", "deadline"), "1s");
    assert_eq!(value(text, "predict e --input i", "output"), "table");
    assert_eq!(value(text, "predict e --input i", "rows"), "0:4");
    assert_eq!(value(text, "node", "pace"), "0.5");
    assert_eq!(value("[node]\nname = 'n1'\noutput = 'json'", "node drain n2", "output"), "json");
}

#[test]
fn the_file_gives_what_a_command_requires() {
    let text = "[load.run]\nendpoint = 'e'\ndata = 'd'\nrate = 400";
    assert_eq!(value(text, "load run", "rate"), "400");
    let Err(Stop::CommandLine(error)) = parse_with("[load.run]\nendpoint = 'e'\nrate = 400", "load run") else {
        panic!("nothing says which data");
    };
    assert!(error.to_string().contains("--data"), "{error}");
    assert_eq!(value("[load.run]\nendpoint = 'e'\ndata = 'd'\nclosed = 4", "load run", "closed"), "4");
}

#[test]
fn switches_and_lists() {
    assert_eq!(value("demo = true", "up", "demo"), "true");
    assert_eq!(value("demo = true\n[up]\ndemo = false", "up", "demo"), "false");
    let two = "coordinators = ['a:1', 'b:2']";
    assert_eq!(value(two, "status", "coordinators"), "a:1 b:2");
    assert_eq!(value(two, "status --coordinators c:3", "coordinators"), "c:3");
    assert_eq!(value("coordinators = 'a:1,b:2'", "status", "coordinators"), "a:1 b:2");
    assert_eq!(value("[predict]\ninput = ['x=a.npy', 'y=b.npy']", "predict e", "input"), "x=a.npy y=b.npy");
}

#[test]
fn a_name_with_two_meanings_goes_where_its_type_fits() {
    // To `up` it is how many.
    assert_eq!(value("coordinators = ['a:1']", "up", "coordinators"), "1");
    assert_eq!(value("coordinators = ['a:1']\n[up]\ncoordinators = 3", "up", "coordinators"), "3");
    assert_eq!(value("coordinators = 3", "status", "coordinators"), "127.0.0.1:7300");
}

#[test]
fn what_excludes_each_other() {
    let base = "[load.run]\nendpoint = 'e'\ndata = 'd'\n";
    assert_eq!(value(&format!("{base}rate = 400\narrivals = 'constant'"), "load run --closed 4", "rate"), "");
    assert_eq!(value(&format!("{base}closed = 4"), "load run --rate 400", "closed"), "");
    let both = mistake(&format!("{base}closed = 4\nrate = 400"), "load run");
    assert!(both.starts_with("weir.toml:4:10: the argument '--closed <CLOSED>' cannot be used with"), "{both}");
    assert_eq!(value("token-file = 'f'", "status --token t", "token_file"), "");
    assert_eq!(value("token = 't'", "status --token-file f", "token"), "");
}

#[test]
fn an_unknown_name_is_told_with_its_place_and_what_was_meant() {
    let text = "output = 'json'\n  data_dir = 'x'";
    assert_eq!(mistake(text, "status"), "weir.toml:2:3: unknown key `data_dir`; did you mean `data-dir`?");
    assert_eq!(mistake("[nod]", "status"), "weir.toml:1:2: unknown table `nod`; did you mean `node`?");
    assert_eq!(mistake("[load.rum]", "status"), "weir.toml:1:7: unknown table `rum`; did you mean `run`?");
    assert_eq!(
        mistake("[status]\nrate = 4", "up"),
        "weir.toml:2:1: unknown key `rate`; known here: coordinators, output, stale, token, token-file"
    );
    assert!(mistake("config = 'other.toml'", "up").starts_with("weir.toml:1:1: unknown key `config`"));
    assert!(mistake("help = true", "up").starts_with("weir.toml:1:1: unknown key `help`"));
}

#[test]
fn a_wrong_type_is_told_with_its_place() {
    assert_eq!(mistake("nodes = '3'", "status"), "weir.toml:1:9: `nodes` takes a number");
    assert_eq!(mistake("name = 5", "up"), "weir.toml:1:8: `name` takes a string");
    assert_eq!(mistake("demo = 1", "up"), "weir.toml:1:8: `demo` takes true or false");
    assert_eq!(mistake("name = ['a']", "up"), "weir.toml:1:8: `name` takes a string");
    assert_eq!(mistake("join = [1]", "up"), "weir.toml:1:8: `join` takes a string or an array of them");
    assert_eq!(mistake("[up]\ncoordinators = 'a:1'", "up"), "weir.toml:2:16: `coordinators` takes a number");
    assert_eq!(
        mistake("nodes = 1.5", "up"),
        "weir.toml:1:9: invalid value '1.5' for '--nodes <NODES>': invalid digit found in string"
    );
    assert_eq!(
        mistake("output = 'jsn'", "status"),
        "weir.toml:1:10: invalid value 'jsn' for '--output <OUTPUT>' [possible values: table, json]"
    );
}

#[test]
fn a_file_that_is_no_toml_or_not_there() {
    assert!(mistake("nodes = 1\nnodes =", "up").starts_with("weir.toml:2:"));
    assert!(mistake("nodes = 1\nnodes = 2", "up").contains("duplicate key"));
    let given = ["weir", "status", "-o", "json", "--config", "nowhere/weir.toml"].map(OsString::from);
    let Err(Stop::File(failure, json)) = parse(&bare(), given.to_vec()) else {
        panic!("there is no such file");
    };
    assert!(json && failure.to_string().contains("cannot read the configuration nowhere/weir.toml"), "{failure}");
}

#[test]
fn the_command_line_s_own_mistakes_and_help_stay_what_they_are() {
    let told = |words: &str| match parse_with("output = 'json'", words) {
        Err(Stop::CommandLine(error)) => error.kind(),
        other => panic!("{words}: {other:?}"),
    };
    use clap::error::ErrorKind;
    assert_eq!(told("status --help"), ErrorKind::DisplayHelp);
    assert_eq!(told("help node"), ErrorKind::DisplayHelp);
    assert_eq!(told("load"), ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
    assert_eq!(told("stauts"), ErrorKind::InvalidSubcommand);
    assert_eq!(told("up --nodes many"), ErrorKind::ValueValidation);
    assert_eq!(told("status --stal"), ErrorKind::UnknownArgument);
}
