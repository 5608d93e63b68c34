-- Arguments: seconds for which the first request is asked again and again before the list begins; moments in seconds from
-- that beginning on, with commas; a file of request heads, with a line of dashes after each; a file with one request a
-- line: the number of its head, TAB, its target, TAB, the target of its referer. The list starts again at its end.
-- In a head {target}, {referer}, {number} and {address} stand for what differs; the number differs in each request.
-- Prints "START" when the list begins, with the time of CLOCK_MONOTONIC, and at the end one line of JSON: how many
-- requests of the list were asked at each moment.
-- Strategy: a head becomes a function of one concatenation, so that a request costs the client about a microsecond.
local ffi = require("ffi")
ffi.cdef [[ struct moment { long seconds, nanoseconds; }; int clock_gettime(int, struct moment *); ]]
local moment, MONOTONIC = ffi.new("struct moment"), 1
local heads, kinds, targets, referers = {}, {}, {}, {}
local hold, marks, began, due, at, calls, first = 0, {}, nil, nil, 0, 0, nil
asked, counts = 0, "" -- global: done() asks the thread for them

local function now()
   ffi.C.clock_gettime(MONOTONIC, moment)
   return tonumber(moment.seconds) + tonumber(moment.nanoseconds) * 1e-9
end

function setup(thread)
   worker = thread
end

local function compile(head)
   local text = string.format("%q", head):gsub("{(%w+)}", '" .. %1 .. "')
   return loadstring("return function(target, referer, number, address) return " .. text .. " end")()
end

function init(args)
   hold = tonumber(args[1])
   for mark in args[2]:gmatch("[^,]+") do marks[#marks + 1] = tonumber(mark) end
   local head = {}
   for line in io.lines(args[3]) do
      if line == "---" then
         heads[#heads + 1] = compile(table.concat(head, "\r\n") .. "\r\n\r\n")
         head = {}
      else
         head[#head + 1] = line
      end
   end
   for line in io.lines(args[4]) do
      local kind, target, referer = line:match("^(%d+)\t(.-)\t(.*)$")
      kinds[#kinds + 1], targets[#targets + 1], referers[#referers + 1] = tonumber(kind), target, referer
   end
   first = heads[kinds[1]](targets[1], referers[1], 0, "10.0.0.0")
end

function request()
   calls = calls + 1
   if calls == 1 then return first end -- wrk only looks at its form
   local time = now()
   if due == nil then
      began = began or time
      if time < began + hold then return first end
      began, due = time, 1
      io.write(string.format("START %.6f\n", time))
      io.flush()
   end
   while marks[due] and time >= began + marks[due] do
      counts = counts .. (counts == "" and "" or ", ") .. asked
      due = due + 1
   end
   asked = asked + 1
   at = at % #kinds + 1
   local number = asked
   local address = "10." .. bit.band(bit.rshift(number, 16), 255) .. "." .. bit.band(bit.rshift(number, 8), 255) .. "."
      .. bit.band(number, 255)
   return heads[kinds[at]](targets[at], referers[at], number, address)
end

function done(summary)
   local errors = summary.errors
   io.write(string.format('RESULT {"counts": [%s], "requests": %d, "lost": %d, "status": %d}\n', worker:get("counts"),
      summary.requests, errors.connect + errors.read + errors.write + errors.timeout, errors.status))
end
