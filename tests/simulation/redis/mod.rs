//! A model of a Redis server: its data, and an interpreter that executes the broker's script unchanged. The test
//! `redis_model` compares the model with a real Redis server.
#![allow(dead_code)] // each test binary uses only part of this module

pub mod store;

use std::cell::RefCell;
use std::rc::Rc;

use mlua::{Function, Lua, LuaOptions, MultiValue, StdLib, Table, Value as LuaValue};
use serde_json::Value as Json;

use store::{Reply, Store};

/// Makes a script fail if it reads or writes an undefined global variable, as in Redis.
const SEAL_GLOBALS: &str = "
    local globals = _G
    setmetatable(globals, {
        __index = function(_, name) error('the script reads the global variable ' .. tostring(name)) end,
        __newindex = function(_, name) error('the script writes the global variable ' .. tostring(name)) end,
    })";

/// Makes `redis.call` throw a table if a command fails, as in Redis.
const CALL_WRAPPER: &str = "function(execute)
        return function(...)
            local reply = execute(...)
            if type(reply) == 'table' and reply.err then
                error(reply)
            end
            return reply
        end
    end";

pub struct Redis {
    pub store: Rc<RefCell<Store>>,
    lua: Lua,
    script: Function,
}

impl Redis {
    pub fn new(script: &str) -> Redis {
        let store = Rc::new(RefCell::new(Store::default()));
        let lua = Lua::new_with(StdLib::STRING | StdLib::TABLE | StdLib::MATH, LuaOptions::default()).expect("Lua");
        prepare(&lua, &store).expect("Lua");
        // Remove `#!lua`: Redis interprets the first line of a script, but Lua does not.
        let source = script.strip_prefix("#!lua").expect("a line that names the language");
        let script = lua.load(source).set_name("=script.lua").into_function().expect("a script that compiles");
        lua.load(SEAL_GLOBALS).exec().expect("Lua");
        Redis { store, lua, script }
    }

    /// Runs the script with `arguments` in `ARGV`. Returns the strings of the script's reply, or the script's error.
    pub fn call(&self, arguments: &[String]) -> Result<Vec<String>, String> {
        let call = || {
            let list = self.lua.create_sequence_from(arguments.iter().map(String::as_str))?;
            self.lua.globals().raw_set("ARGV", list)?;
            self.script.call::<Vec<String>>(())
        };
        call().map_err(|error: mlua::Error| error.to_string())
    }
}

fn prepare(lua: &Lua, store: &Rc<RefCell<Store>>) -> mlua::Result<()> {
    let (redis, cjson, store) = (lua.create_table()?, lua.create_table()?, Rc::clone(store));
    let call = lua.create_function(move |lua, words: MultiValue| {
        let words = words.iter().map(format_argument).collect::<mlua::Result<Vec<_>>>()?;
        let reply = store.borrow_mut().execute(&words);
        match reply {
            Ok(reply) => to_lua(lua, &reply),
            Err(error) => {
                let failure = lua.create_table()?;
                failure.set("err", format!("ERR {error}: {words:?}"))?;
                Ok(LuaValue::Table(failure))
            }
        }
    })?;
    redis.set("call", lua.load(CALL_WRAPPER).eval::<Function>()?.call::<Function>(call)?)?;
    cjson.set("encode", lua.create_function(|_, value: LuaValue| Ok(encode(&value)?.to_string()))?)?;
    cjson.set("decode", lua.create_function(|lua, text: String| decode(lua, &parse(&text)?))?)?;
    lua.globals().set("redis", redis)?;
    lua.globals().set("cjson", cjson)
}

fn format_argument(value: &LuaValue) -> mlua::Result<String> {
    match value {
        LuaValue::String(text) => Ok(text.to_str()?.to_owned()),
        LuaValue::Integer(number) => Ok(number.to_string()),
        LuaValue::Number(number) if number.fract() == 0.0 && number.abs() < 1e15 => Ok(format!("{number:.0}")),
        other => {
            Err(mlua::Error::runtime(format!("Lua redis lib command arguments must be strings or integers: {other:?}")))
        }
    }
}

fn to_lua(lua: &Lua, reply: &Reply) -> mlua::Result<LuaValue> {
    match reply {
        Reply::Nil => Ok(LuaValue::Boolean(false)),
        Reply::Number(number) => Ok(LuaValue::Number(*number as f64)),
        Reply::Text(text) => lua.create_string(text).map(LuaValue::String),
        Reply::List(replies) => {
            let replies = replies.iter().map(|reply| to_lua(lua, reply)).collect::<mlua::Result<Vec<_>>>()?;
            lua.create_sequence_from(replies).map(LuaValue::Table)
        }
    }
}

fn parse(text: &str) -> mlua::Result<Json> {
    serde_json::from_str(text).map_err(|error| mlua::Error::runtime(format!("{error}: {text}")))
}

fn encode(value: &LuaValue) -> mlua::Result<Json> {
    match value {
        LuaValue::Boolean(flag) => Ok(Json::Bool(*flag)),
        LuaValue::Integer(number) => Ok(Json::from(*number)),
        LuaValue::String(text) => Ok(Json::String(text.to_str()?.to_owned())),
        LuaValue::Table(table) if table.raw_len() > 0 => table
            .sequence_values::<LuaValue>()
            .map(|value| encode(&value?))
            .collect::<mlua::Result<Vec<_>>>()
            .map(Json::Array),
        LuaValue::Table(table) => encode_fields(table), // as in Redis, an empty table becomes {}
        other => Err(mlua::Error::runtime(format!("Cannot serialise {}", other.type_name()))),
    }
}

fn encode_fields(table: &Table) -> mlua::Result<Json> {
    let fields =
        table.pairs::<String, LuaValue>().map(|pair| pair.and_then(|(name, value)| Ok((name, encode(&value)?))));
    fields.collect::<mlua::Result<serde_json::Map<_, _>>>().map(Json::Object)
}

fn decode(lua: &Lua, json: &Json) -> mlua::Result<LuaValue> {
    match json {
        Json::Bool(flag) => Ok(LuaValue::Boolean(*flag)),
        Json::Number(number) => Ok(LuaValue::Number(number.as_f64().unwrap_or(f64::NAN))),
        Json::String(text) => lua.create_string(text).map(LuaValue::String),
        Json::Array(values) => {
            let values = values.iter().map(|value| decode(lua, value)).collect::<mlua::Result<Vec<_>>>()?;
            lua.create_sequence_from(values).map(LuaValue::Table)
        }
        Json::Object(fields) => {
            let table = lua.create_table()?;
            fields.iter().try_for_each(|(name, value)| table.set(name.as_str(), decode(lua, value)?))?;
            Ok(LuaValue::Table(table))
        }
        Json::Null => Err(mlua::Error::runtime("the model does not know cjson.null")),
    }
}
