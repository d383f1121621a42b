// Reads a model directory in every way that Node has, and prints what it found as JSON.
//
//     NODE_PATH=.../node_modules node read_model.cjs DIR SENTENCE
//
// DIR/bare has the shards that the `safetensors` package reads: it knows no __metadata__.

const { createHash } = require("node:crypto");
const fs = require("node:fs");
const path = require("node:path");
const { Worker, isMainThread, parentPort, workerData } = require("node:worker_threads");

const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

// The `safetensors` package: the whole file in memory.
function withPackage(file) {
	const { SafeTensor } = require("safetensors");
	const bytes = new Uint8Array(fs.readFileSync(file));
	const loaded = new SafeTensor(bytes);
	return Object.fromEntries([...loaded.metadata.keys()].map((name) => {
		const { dtype, shape } = loaded.metadata.get(name);
		return [name, [dtype, shape, sha256(loaded.getTensor(name))]];
	}));
}

// Positional reads of the header and of each tensor, some at once.
async function withPositions(file) {
	const handle = await fs.promises.open(file);
	try {
		const exactly = async (position, length) => {
			const { bytesRead, buffer } = await handle.read(Buffer.alloc(length), 0, length, position);
			if (bytesRead !== length) throw new Error(`${file}: ${bytesRead} of ${length} bytes at ${position}`);
			return buffer;
		};
		const length = Number((await exactly(0, 8)).readBigUInt64LE());
		const header = JSON.parse((await exactly(8, length)).toString());
		delete header.__metadata__;
		return Object.fromEntries(await Promise.all(Object.entries(header).map(async ([name, tensor]) => {
			const [begin, end] = tensor.data_offsets;
			return [name, [tensor.dtype, tensor.shape, sha256(await exactly(8 + length + begin, end - begin))]];
		})));
	} finally {
		await handle.close();
	}
}

async function withStream(file) {
	const hash = createHash("sha256");
	for await (const chunk of fs.createReadStream(file, { highWaterMark: 10007 })) hash.update(chunk);
	return hash.digest("hex");
}

// A Blob backed by the file, read as two slices.
async function withBlob(file) {
	const blob = await fs.openAsBlob(file);
	const hash = createHash("sha256");
	for (const part of [blob.slice(0, 4097), blob.slice(4097)]) hash.update(Buffer.from(await part.arrayBuffer()));
	return hash.digest("hex");
}

function withWorker(file) {
	return new Promise((resolve, reject) => {
		new Worker(__filename, { workerData: file }).on("message", resolve).on("error", reject);
	});
}

function tokens(directory, sentence) {
	const { Tokenizer } = require("@huggingface/tokenizers");
	const json = (name) => JSON.parse(fs.readFileSync(path.join(directory, name), "utf8"));
	const tokenizer = new Tokenizer(json("tokenizer.json"), json("tokenizer_config.json"));
	return tokenizer.encode(sentence).ids;
}

function chat(directory, sentence) {
	const { Template } = require("@huggingface/jinja");
	const template = new Template(fs.readFileSync(path.join(directory, "chat_template.jinja"), "utf8"));
	return template.render({ messages: [{ role: "user", content: sentence }] });
}

async function main([directory, sentence]) {
	const shards = (folder) => fs.readdirSync(folder).filter((name) => name.endsWith(".safetensors")).sort()
		.map((name) => path.join(folder, name));
	const files = shards(directory);
	const all = (read) => Promise.all(files.map(read));
	console.log(JSON.stringify({
		config: JSON.parse(await fs.promises.readFile(path.join(directory, "config.json"), "utf8")),
		tokens: tokens(directory, sentence),
		chat: chat(directory, sentence),
		packaged: Object.assign({}, ...shards(path.join(directory, "bare")).map(withPackage)),
		positioned: Object.assign({}, ...await all(withPositions)),
		streamed: await all(withStream),
		sliced: await all(withBlob),
		worked: await all(withWorker),
	}));
}

if (isMainThread) main(process.argv.slice(2));
else parentPort.postMessage(sha256(fs.readFileSync(workerData)));
