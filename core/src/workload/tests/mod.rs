mod processes;
mod statistics;
mod text;
mod trace;
