mod processes;
mod statistics;
mod text;
mod theory;
mod trace;
