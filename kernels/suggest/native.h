// Draft tokens with acceptance probabilities, compiled: those of suggest.py and history.py.
// The reasons are explained there; comments here cover only what differs.
#pragma once

#include <algorithm>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "memory.h"

namespace penstock::suggestions {

class Suggester {
    static constexpr int64_t LONGEST_MATCH = 8, CARRIED_DEPTHS = 8;
    struct Asked {
        Token token;
        Trust* trust;
    };
    // The newest token, as number 0, or a draft token. `follows`, `carried`: index of the next token
    // in the vectors of that name below, from the history and the last pass; their end if none.
    struct Node {
        Token token;
        double chance;
        int64_t depth, parent, follows, carried;
        Context tail;
        std::vector<Asked> asked;
        std::vector<int64_t> children;
    };
    struct Waiting {
        double chance;
        int64_t made, before;
        Token token;
        bool operator<(const Waiting& other) const {  // the greatest is drafted next
            return chance != other.chance ? chance < other.chance : made > other.made;
        }
    };

    std::unique_ptr<Memory> own;
    Memory* memory;
    Tokens text, prompt;  // `prompt`: the tokens that the lexicon counts
    int64_t prompt_size, longest, shortest;
    bool shared, trees;
    std::unordered_map<Token, int64_t> expected;
    std::vector<Node> nodes;
    Tokens follows, carried;
    int64_t matched = 0;
    std::vector<Evidence> evidence;
    std::vector<std::pair<double, Asked>> ordered;
    std::vector<Waiting> waiting;

    // Finds the longest run of last tokens that occurred before, of several places the latest, and at
    // most `count` tokens that followed it there.
    void match(int64_t count) {
        follows.clear();
        matched = 0;
        int64_t size = int64_t(text.size()), behind = size;
        for (int64_t at = size - 2; at >= 0 && matched < longest; --at) {
            if (text[at] != text[size - 1]) continue;
            int64_t length = 1;
            while (length < longest && length <= at && text[at - length] == text[size - 1 - length])
                ++length;
            if (length > matched) matched = length, behind = at + 1;
        }
        if (matched < shortest) {
            matched = 0;
            return;
        }
        int64_t end = std::min(size, behind + count);
        follows.assign(text.begin() + behind, text.begin() + end);
    }

    void add(Token token, double share, int64_t grounds) {
        Evidence* known = of_token(evidence, token);
        if (!known) {
            evidence.push_back({token, share, grounds});
            return;
        }
        known->share = std::max(known->share, share);
        known->grounds += grounds;
    }

    // Adds to `waiting` the candidates after node `number` of at least probability `worth`.
    void expand(int64_t number, double worth, int64_t& made) {
        Node& node = nodes[number];
        evidence.clear();
        if (shared) memory->followers.after(node.tail, evidence);
        if (node.follows < int64_t(follows.size())) {
            int64_t length = std::min(matched + node.depth, LONGEST_MATCH);
            add(follows[node.follows], 0.2 + 0.6 * double(length) / LONGEST_MATCH, length << 12);
        }
        if (node.carried < int64_t(carried.size()))
            add(carried[node.carried], 0.3, std::min(node.depth + 1, CARRIED_DEPTHS) << 16);
        ordered.clear();
        for (const Evidence& each : evidence) {
            auto sure = expected.find(each.token);
            int64_t grounds = each.grounds + (sure == expected.end() ? 0 : sure->second << 20);
            Trust* trust = &memory->trusts.try_emplace(grounds, each.share).first->second;
            node.asked.push_back({each.token, trust});
            ordered.push_back({trust->share(), {each.token, trust}});
        }
        std::stable_sort(ordered.begin(), ordered.end(), [](const auto& a, const auto& b) {
            return a.first > b.first;
        });
        double left = 1;
        for (const auto& [share, asked] : ordered) {
            // The shares of all candidates may not exceed 1.
            double sure = std::min(share, left);
            left -= sure;
            sure *= node.chance;
            if (sure < worth) return;
            waiting.push_back({sure, ++made, number, asked.token});
            std::push_heap(waiting.begin(), waiting.end());
            if (!trees) return;
        }
    }

  public:
    // `memory` null: the suggester has one of its own.
    Suggester(
        Memory* memory, const Token* tokens, int64_t size, int64_t longest, int64_t shortest, bool trees
    )
        : own(memory ? nullptr : new Memory), memory(memory ? memory : own.get()),
          text(tokens, tokens + size), prompt(Lexicon::end_of(tokens, size)), prompt_size(size), longest(std::min(longest, LONGEST_MATCH)),
          shortest(shortest), shared(memory), trees(trees) {
        if (shared) expected = memory->lexicon.expected(prompt);
    }

    // `sums`: how many of the first 1, 2, 3, ... draft tokens will be right, on average.
    int64_t suggest(
        int64_t count, int64_t limit, const Token* predicted, int64_t predictions, double worth, double* sums
    ) {
        match(std::max<int64_t>(0, std::min(count, limit)));
        carried.assign(predicted, predicted + predictions);
        waiting.clear();
        nodes.clear();
        Context tail(text.data() + text.size(), int64_t(text.size()));
        nodes.push_back({-1, 1, 0, -1, 0, 0, tail, {}, {}});
        int64_t made = 0, number = 0, guesses = 0;
        double sum = 0;
        while (true) {
            if (nodes[number].depth < limit) expand(number, worth, made);
            if (waiting.empty() || guesses >= count) return guesses;
            std::pop_heap(waiting.begin(), waiting.end());
            Waiting next = waiting.back();
            waiting.pop_back();
            const Node& before = nodes[next.before];
            auto behind = [&](const Tokens& said, int64_t at) {
                bool so = at < int64_t(said.size()) && said[at] == next.token;
                return so ? at + 1 : int64_t(said.size());
            };
            Node node{
                next.token, next.chance, before.depth + 1, next.before, behind(follows, before.follows),
                behind(carried, before.carried), before.tail.then(next.token), {}, {}
            };
            number = ++guesses;
            nodes[next.before].children.push_back(number);
            nodes.push_back(std::move(node));
            sums[number - 1] = sum += next.chance;
        }
    }

    // The first `size` draft tokens, in depth-first order; returns whether they are a chain.
    bool draft(int64_t size, Token* tokens, Token* parents) const {
        if (nodes.empty()) return true;
        std::vector<std::pair<int64_t, Token>> open;
        auto open_up = [&](int64_t number, Token at) {
            const auto& children = nodes[number].children;
            for (auto child = children.rbegin(); child != children.rend(); ++child)
                if (*child <= size) open.push_back({*child, at});
        };
        open_up(0, -1);
        for (Token at = 0; !open.empty(); ++at) {
            auto [number, parent] = open.back();
            open.pop_back();
            tokens[at] = nodes[number].token;
            parents[at] = parent;
            open_up(number, at);
        }
        return nodes[size].depth == size;
    }

    // The sequence has grown by `tokens`.
    void learn(const Token* tokens, int64_t size) {
        int64_t number = nodes.empty() ? -1 : 0;
        for (int64_t at = 0; at < size && number >= 0; ++at) {
            for (const Asked& each : nodes[number].asked) each.trust->observe(each.token == tokens[at]);
            int64_t next = -1;
            for (int64_t child : nodes[number].children)
                if (nodes[child].token == tokens[at]) next = child;
            number = next;
        }
        nodes.clear();
        text.insert(text.end(), tokens, tokens + size);
        if (!shared) return;
        int64_t known = std::min<int64_t>(int64_t(text.size()), size + Context::LONGEST);
        memory->followers.learn(text.data() + text.size() - known, known, known - size);
    }

    void finish() {
        if (!shared) return;
        int64_t said = int64_t(text.size()) - prompt_size;
        memory->lexicon.learn(prompt, text.data() + prompt_size, said);
    }
};

}  // namespace penstock::suggestions
